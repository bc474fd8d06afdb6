"""The signals by which a scheduler asks a run to leave. Light, so that loaders anywhere can use it."""

import signal

# SLURM sends USR1 or USR2 before the time limit (--signal), submitit USR2, all schedulers TERM.
SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)


def ignore_signals(_worker: int = 0) -> None:
    """For loader workers: SLURM signals every process of a step, and theirs must live until the run has saved."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
