"""Miniatures of all 40 sets of DataComp and three more, each in the layout that it is published in.

Names, templates and annotations have the oddities of the published sets; pictures have every form that a
decoder meets. Tests and benchmarks share this.
"""

import csv
import io
import json
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from miniature import write_set

CONFIG: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 48, "layers": 1, "head_width": 16},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
# With it the worst of FMoW is region 5, and no other region and no region of GeoDE is all wrong.
SEED = 54
# DataComp's columns, by the names of its tables; what is in none of them counts in the average alone.
SHIFTS = (
    "ImageNet Sketch", "ImageNet v2", "ImageNet-A", "ImageNet-O", "ImageNet-R", "ObjectNet",
)  # fmt: skip
VTAB = (
    "Caltech-101", "CIFAR-100", "CLEVR Counts", "CLEVR Distance", "Describable Textures", "EuroSAT",
    "KITTI Vehicle Distance", "Oxford Flowers-102", "Oxford-IIIT Pet", "PatchCamelyon", "RESISC45",
    "SVHN", "SUN397",
)  # fmt: skip
COLUMNS = {
    "ImageNet": ("ImageNet 1k",),
    "ImageNet dist. shifts": SHIFTS,
    "VTAB": VTAB,
    "Retrieval": ("Flickr", "MSCOCO", "WinoGAViL"),
}
# Where the main metric is not acc1.
MAIN = {
    "vtab/caltech101": "mean_per_class_recall",
    "fgvc_aircraft": "mean_per_class_recall",
    "vtab/flowers": "mean_per_class_recall",
    "vtab/pets": "mean_per_class_recall",
    "retrieval/flickr_1k_test_image_text_retrieval": "mean_recall@1",
    "retrieval/mscoco_2014_5k_test_image_text_retrieval": "mean_recall@1",
    "misc/winogavil": "jaccard_score_10-12",
    "wilds/iwildcam": "F1-macro_all",
    "wilds/fmow": "acc_worst_region",
    "fairness/dollar_street": "acc_top5_wg",
    "fairness/geode": "acc_wg",
    "fairness/fairface": None,
    "fairness/utkface": None,
}

FLICKR, COCO = list(MAIN)[4:6]
IMAGENET = (
    "tench|goldfish|crane bird|kite (bird of prey)|missile|construction crane|sunglasses|missile|"
    "projectile|sunglasses|ear of corn|toilet paper"
)
# One line for each set: its names. A blank and twins stand where the published files have them.
NAMES = {
    "vtab/caltech101": "background|off-center face|centered face|leopard|motorbike|accordion",
    "cifar10": "airplane|automobile|bird|cat|deer|dog|frog|horse|ship|truck",
    "vtab/cifar100": "apple|aquarium fish|baby|bear|maple tree|pickup truck|wardrobe",
    "vtab/clevr_count_all": "three|four|five|six|seven|eight|nine|ten",
    "vtab/clevr_closest_object_distance": "very nearby|nearby|near||distant|very distant",
    "country211": "Andorra|United Arab Emirates|Côte d'Ivoire|St. Lucia|Åland Islands|Zambia",
    "vtab/dtd": "banded|blotchy|braided|bubbly|bumpy|cracked",
    "vtab/eurosat": "annual crop land|forest|a highway or road|pasture land|a river|lake or sea",
    "fgvc_aircraft": "707-320|A300B4|Cessna 172|DC-10|Il-76|Tu-154",
    "food101": "apple pie|baby back ribs|crème brûlée|pho|waffles",
    "gtsrb": "red and white circle 20 kph speed limit|stop|yield|no entry|keep right",
    "imagenet1k": IMAGENET,
    "imagenet_sketch": IMAGENET,
    "imagenetv2": IMAGENET,
    "imagenet-a": "stingray|goldfinch|junco|robin|jay|bald eagle",
    "imagenet-o": "goldfish|triceratops|harvestman|centipede|lorikeet|sulphur butterfly",
    "imagenet-r": "goldfish|great white shark|hammerhead|stingray|hen|ostrich",
    "vtab/kitti_closest_vehicle_distance": (
        "a photo i took of a car on my left or right side.|a photo i took with a car nearby.|"
        "a photo i took with a car in the distance.|a photo i took with no car."
    ),
    "mnist": "0|1|2|3|4|5|6|7|8|9",
    "objectnet": "air freshener|alarm clock|backpack|baking sheet|band aid|banana",
    "vtab/flowers": "pink primrose|hard-leaved pocket orchid|canterbury bells|sweet pea|moon orchid",
    "vtab/pets": "Abyssinian|Bengal|Birman|beagle|english setter|yorkshire terrier",
    "voc2007": "aeroplane|bicycle|bird|boat|bottle|person|tv monitor",
    "vtab/pcam": "lymph node|lymph node containing metastatic tumor tissue",
    "renderedsst2": "negative|positive",
    "vtab/resisc45": "airplane|baseball diamond|beach|dense residential area|wetland",
    "cars": "AM General Hummer SUV 2000|Acura RL Sedan 2012|Audi 100 Wagon 1994|smart fortwo 2012",
    "stl10": "airplane|bird|car|cat|deer|dog|horse|monkey|ship|truck",
    "sun397": "abbey|airplane cabin|art gallery|veterinarians office|yard|youth hostel",
    "vtab/svhn": "zero|one|two|three|four|five|six|seven|eight|nine",
    "wilds/iwildcam": (
        "empty|jaguarundi|lowland paca|unknown bird|ocelot|jaguarundi|central american red brocket|"
        "lowland paca|unknown bird|central american red brocket|giraffe"
    ),
    "wilds/camelyon17": "lymph node|lymph node containing metastatic tumor tissue",
    "wilds/fmow": "airport|amusement park|barn|border checkpoint|zoo",
    "fairness/dollar_street": "bathrooms|beds|books|cars|cups|front doors|stoves|toys",
    "fairness/geode": "bag|chair|dustbin|hat|light fixture",
    "fer2013": "angry|disgusted|fearful|happy|neutral|sad|surprised",
    "vtab/dmlab": ("nearby apple/melon|far apple/melon|very far apple/melon|nearby lemon|far lemon|very far lemon"),
    "voc2007_multilabel": "aeroplane|bicycle|bird|boat|bottle|bus|cat",
}
TEMPLATES = {
    "cifar10": "a photo of a {c}.|a blurry photo of the {c}.|a low contrast photo of a {c}.",
    "vtab/clevr_count_all": "a photo of {c} objects.",
    "vtab/clevr_closest_object_distance": "a photo where the closest object is {c}.",
    "vtab/kitti_closest_vehicle_distance": "{c}",
    "renderedsst2": "a {c} review of a movie.",
    "fer2013": "a photo of a {c} looking face.|an emoticon; {c}, very {c}.",
}
PEOPLE = "black|white|indian|latino|middle eastern|southeast asian|east asian"
FACES = {
    "race": PEOPLE,
    "gender": "male|female",
    "age": "0-2|3-9|10-19|20-29|30-39|40-49|50-59|60-69|more than 70",
    "toxic": "|".join(
        [f"{who} {what}" for what in ("man", "woman") for who in PEOPLE.split("|")]
        + ["animal", "gorilla", "chimpanzee", "orangutan", "thief", "criminal", "suspicious person"]
    ),
}
FACE_SETS = ("fairness/fairface", "fairness/utkface")
# In CLIP_benchmark's folders; the others are in DataComp's, but for three from the Hub.
OF_CLIP_BENCHMARK = {
    "fer2013": "wds_fer2013",
    "vtab/dmlab": "wds_vtab-dmlab",
    "voc2007_multilabel": "wds_voc2007_multilabel",
}
# Mode and ending of pictures, in turn.
FORMS = (
    ("RGB", "webp"), ("RGB", "png"), ("RGB", "jpg"), ("P", "png"), ("RGBA", "png"), ("L", "jpeg"),
    ("CMYK", "jpg"), ("turned", "jpg"), ("LA", "png"), ("1", "png"),
)  # fmt: skip
ORIENTATION, QUARTER_TURN = 0x0112, 6


def folder_of(key: str) -> str:
    """Where a set of tars lies under the root."""
    if key in OF_CLIP_BENCHMARK:
        return OF_CLIP_BENCHMARK[key]
    # DataComp's folders of fairness sets drop the word.
    return f"wds_{key.removeprefix('fairness/').replace('/', '-')}_test"


def write_forty(root: Path, *, pictures: int = 30, size: int = 40) -> None:
    """Write all sets.

    Args:
        root: Folder of the sets.
        pictures: Of a set of plain classification, 12 or more; some others have half as many more.
        size: Of their shorter sides about, in pixels.
    """
    for key in NAMES:
        _write_classes(root / folder_of(key), key, pictures, size)
    for key in FACE_SETS:
        _write_faces(root / folder_of(key), key, pictures * 3 // 2, size)
    _write_flickr(root / FLICKR.split("/")[1], pictures, size)
    _write_coco(root / "hf_cache" / f"datasets--nlphuji--{COCO.split('/')[1]}", pictures, size)
    _write_winogavil(root / "winogavil", pictures, size)


def _chance(key: str) -> np.random.Generator:
    return np.random.default_rng([SEED, zlib.crc32(key.encode())])


def write_model(folder: Path) -> tuple[Path, Path]:
    """Write a tiny open_clip model with random weights whose answers vary: state dict and config."""
    import open_clip
    import torch

    torch.manual_seed(1)
    model = open_clip.model.CLIP(**CONFIG)
    with torch.no_grad():
        # Untrained towers give nearly one vector for everything; this spreads them out.
        for parameter in (*model.visual.parameters(), model.token_embedding.weight):
            parameter.mul_(3)
    folder.mkdir(parents=True, exist_ok=True)
    weights, config = folder / "tiny.pt", folder / "tiny.json"
    torch.save(model.state_dict(), weights)
    config.write_text(json.dumps(CONFIG))
    return weights, config


def draw(generator: np.random.Generator, size: int, colour: np.ndarray, form: tuple[str, str]) -> bytes:
    """Draw a picture of noise, of about one colour, in a mode and a format."""
    from PIL import Image

    mode, ending = form
    shape = (*generator.integers(size * 3 // 4, size * 3 // 2, size=2), 3)
    noise = generator.normal(0, 70, size=shape) + colour
    image = Image.fromarray(noise.clip(0, 255).astype(np.uint8))
    options: dict[str, Any] = {"lossless": True} if ending == "webp" else {}
    if mode == "turned":
        options["exif"] = Image.Exif()
        options["exif"][ORIENTATION] = QUARTER_TURN
    elif mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(noise[:, :, 0].clip(0, 255).astype(np.uint8)))
        image = image.convert(mode)
    else:
        image = image.convert(mode)
    file = io.BytesIO()
    image.save(file, "jpeg" if ending == "jpg" else ending, **options)
    return file.getvalue()


def npy(row: np.ndarray) -> bytes:
    """An array as a `.npy` file."""
    file = io.BytesIO()
    np.save(file, row)
    return file.getvalue()


def _iwildcam(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    when = generator.integers(1, 24, size=(len(labels), 8))
    return np.column_stack([when, labels, np.zeros_like(labels)])


def _camelyon17(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    slides = generator.integers(20, 25, size=len(labels))
    return np.column_stack([np.full_like(labels, 2), slides, labels, np.zeros_like(labels)])


def _fmow(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    region = generator.integers(5, size=len(labels))
    region[[7, 8, 9]] = 5  # "Other": few, and the worst
    years = generator.integers(14, 17, size=len(labels))
    return np.column_stack([region, years, labels, np.zeros_like(labels)])


def _dollar_street(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return generator.integers(4, size=(len(labels), 3))


def _geode(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return generator.integers([3, 30], size=(len(labels), 2))


METADATA: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "wilds/iwildcam": _iwildcam,
    "wilds/camelyon17": _camelyon17,
    "wilds/fmow": _fmow,
    "fairness/dollar_street": _dollar_street,
    "fairness/geode": _geode,
}


def _pictures(generator: np.random.Generator, groups: np.ndarray, size: int) -> list[tuple[str, bytes]]:
    """An ending and a file for each picture; those of a group are alike in colour."""
    colours = generator.integers(256, size=(int(groups.max()) + 1, 3))
    forms = [FORMS[i % len(FORMS)] for i in range(len(groups))]
    return [
        (form[1], draw(generator, size, colours[group], form)) for form, group in zip(forms, groups, strict=True)
    ]


def _write_classes(folder: Path, key: str, pictures: int, size: int) -> None:
    generator, names = _chance(key), NAMES[key].split("|")
    templates = TEMPLATES.get(key, "a photo of a {c}.|a drawing of the {c}.|my {c}, one {c}")
    number = pictures * 3 // 2 if key in METADATA else pictures
    labels = generator.integers(len(names), size=number)
    # A class may have no picture.
    labels[labels == 2] = 0 if len(names) > 4 else labels[labels == 2]
    samples = [{ending: data} for ending, data in _pictures(generator, labels, size)]
    if key == "voc2007_multilabel":
        shown = generator.random((number, len(names))) < 0.3
        shown[:, 3] = False
        for sample, row in zip(samples, shown.astype(np.int64), strict=True):
            sample["npy"] = npy(row)
    else:
        for sample, label in zip(samples, labels, strict=True):
            sample["cls"] = str(label).encode()
    if key in METADATA:
        for sample, row in zip(samples, METADATA[key](labels, generator), strict=True):
            sample["npy"] = npy(row)
    if key == "mnist":
        # Of several pictures of a sample, webp counts, then png.
        for sample in samples:
            if "webp" in sample or "png" in sample:
                sample["jpg"] = draw(generator, size, np.zeros(3), ("RGB", "jpg"))
    write_set(
        folder, samples, class_names=names, templates=templates.split("|"),
        samples_per_shard=-(-number // 2),
    )  # fmt: skip
    if key in OF_CLIP_BENCHMARK:
        said = "multilabel" if key == "voc2007_multilabel" else "classification"
        (folder / "dataset_type.txt").write_text(said)


def _write_faces(folder: Path, key: str, pictures: int, size: int) -> None:
    generator = _chance(key)
    age = generator.integers(9, size=pictures)
    race = generator.integers(7 if key == "fairness/fairface" else 5, size=pictures)
    race[race == 2] = 1  # nobody, between races that occur
    if key == "fairness/utkface":
        age[:4] = (0, 9, 35, 116)  # years, which are no number of an answer
    gender = generator.integers(2, size=pictures)
    table = np.column_stack([age, gender, race, race != 1]).astype(np.int64)
    samples = [
        {ending: data, "npy": npy(row)}
        for (ending, data), row in zip(_pictures(generator, race, size), table, strict=True)
    ]
    names = [f"{asked}:{name}" for asked, line in FACES.items() for name in line.split("|")]
    # The order of the questions in a file says nothing.
    templates = [f"{asked}:a photo of a {{c}}" for asked in reversed(FACES)]
    templates += ["toxic:this is a {c}.", "age:a person aged {c}."]
    write_set(folder, samples, class_names=names, templates=templates)


def _captions(generator: np.random.Generator, pictures: int) -> list[list[str]]:
    words = ["a", "an", "the", "old", "red", "tiny", "cat", "dog", "tree", "near", "two", "boats,"]
    return [
        [" ".join(generator.choice(words, size=7)) for _ in range(generator.integers(1, 7))]
        for _ in range(pictures)
    ]


def _write_flickr(folder: Path, pictures: int, size: int) -> None:
    generator = _chance(FLICKR)
    drawn = _pictures(generator, np.arange(pictures), size)
    names = [f"{1000 + 7 * i}.{ending}" for i, (ending, _) in enumerate(drawn)]
    rows = [
        [json.dumps(lines), "[0]", "test", name, i]
        for i, (lines, name) in enumerate(zip(_captions(generator, pictures), names, strict=True))
    ]
    columns = ["raw", "sentids", "split", "filename", "img_id"]
    _write_csv(folder / "test_1k_flickr.csv", columns, rows)
    # The order in the zip is another one.
    order = generator.permutation(pictures)
    _write_zip(folder / "images_flickr_1k_test.zip", [(names[i], drawn[i][1]) for i in order])


def _write_coco(cache: Path, pictures: int, size: int) -> None:
    generator = _chance(COCO)
    import pyarrow as pa
    import pyarrow.parquet as pq

    captions = _captions(generator, pictures)
    for i in range(0, pictures - 1, 3):
        captions[i + 1][0] = captions[i][0]  # of two pictures
    drawn = _pictures(generator, np.arange(pictures), size)
    images = [{"bytes": data, "path": f"{i}.{ending}"} for i, (ending, data) in enumerate(drawn)]
    column = pa.array(images, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    table = pa.table({"image": column, "caption": captions, "cocoid": list(range(pictures))})
    data = cache / "snapshots" / "0a1b" / "data"
    data.mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0a1b")
    pq.write_table(table, data / "test-00000-of-00001.parquet", row_group_size=16)


def _write_winogavil(folder: Path, pictures: int, size: int) -> None:
    generator = _chance("misc/winogavil")
    drawn = _pictures(generator, np.arange(pictures), size)
    names = [f"thing no {i}" if i % 3 else f"thing{i}" for i in range(pictures)]
    cues = ("Eclipse", "hour", "bald", "Up", "tea party", "year", "ice", "owl's", "yellow", "young")
    rows = []
    for i, num in enumerate(generator.choice([5, 6, 10, 12], size=pictures)):
        candidates = list(generator.choice(names, num, replace=False))
        true = list(generator.choice(candidates, generator.integers(2, 5), replace=False))
        rows.append([json.dumps(candidates), cues[i % len(cues)], json.dumps(true)])
    _write_csv(folder / "winogavil_dataset.csv", ["candidates", "cue", "associations"], rows)
    # Whatever their format, all are called jpg.
    files = [(f"{name}.jpg", data) for name, (_, data) in zip(names, drawn, strict=True)]
    _write_zip(folder / "winogavil_images.zip", files)


def _write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])


def _write_zip(path: Path, files: Sequence[tuple[str, bytes]]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files:
            archive.writestr(f"pictures/{name}", data)
            archive.writestr(f"__MACOSX/pictures/._{name}", b"of a file system")
