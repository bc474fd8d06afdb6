#!/usr/bin/env bash
# Reproduces: no single table: MetaCLIP (Xu et al. 2024) over its threshold t, which sets the size: at one budget of samples
#   the size is given and t is solved for, so that chance can be drawn at each size, too.
# Bring: DataComp medium: its metadata folder, the tars of its downloader, the evaluation sets in DataComp's layout; and
#   MetaCLIP's metadata.json, or another list of entries:
#     slurm/studies/metaclip_threshold.sh pool.metadata=METADATA pool.shards='*.tar' root=SETS select.metadata.file=FILE
# Runs: 18: MetaCLIP and uniform at 9.6, 19.2 and 38.4 M of about 120 M, 3 seeds each; no dedup, no filter.
# Cost (estimate), hours of one H100 SXM: FLOP / (989.4 TFLOP/s x 0.25), the 0.25 assumed; evaluation not counted, matching
#   takes a core an hour or two:
#   18 x      128 M samples x 44.1 GFLOP = 114 h  ViT-B/32
#   in all 114 h
# Expect: not known. The paper took the t at which 6 % of all matches are on rare entries: 20,000 for 400 M of 1.6 B pairs
#   (section 3.4), 60,000 for 1 B of DataComp's 12.8 B (appendix A.1).
# Assumed: The sizes. That 38.4 M captions and more hold an entry: in the paper half of the English ones do.
set -euo pipefail
exec dbp sweep experiment=metaclip_threshold launcher="${LAUNCHER:-slurm}" "$@"
