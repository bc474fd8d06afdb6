"""Text that LaTeX prints as it is, with its usual fonts and no package but textcomp, which it loads itself."""

import unicodedata

SIGNS = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{",
    "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''", "±": r"$\pm$", "−": "$-$", "·": r"$\cdot$",
    "…": r"\ldots{}", "–": "--", "—": "---", "`": r"\`{}", "‡": r"\textsuperscript{\textdaggerdbl}",
    "†": r"\textsuperscript{\textdagger}", "¶": r"\textsuperscript{\textparagraph}",
    "[": "{[}", "]": "{]}", "*": "{*}",  # after the end of a row they would be its options
}  # fmt: skip


def latex_text(text: str) -> str:
    """Text with every sign of LaTeX's own escaped; letters that its fonts lack become their code points."""
    return "".join(_letter(letter) for letter in " ".join(text.split()))


def _letter(letter: str) -> str:
    if letter in SIGNS:
        return SIGNS[letter]
    if letter.isascii():
        return letter
    plain = unicodedata.normalize("NFKD", letter)
    bare = "".join(SIGNS.get(c, c) for c in plain if c.isascii())
    return bare or f"(U+{ord(letter):04X})"
