#!/usr/bin/env bash
# Reproduces: Abbas et al. 2024 (DBP), the choice of the softmax' temperature.
# Bring: 50 M pairs, drawn by chance from what SemDeDup leaves of LAION-CAT-440M, as tars; they can be made by
#     dbp curate experiment=on_laion_440m pool.shards=LAION select=uniform budget.num_kept=50000000
#     dbp export keep=KEY format=webdataset out=LAION50M
#   the evaluation sets in DataComp's layout; and, by dbp prefetch, the weights of DINOv2 ViT-L/14:
#     slurm/studies/temperature.sh pool.shards='LAION50M/*.tar' root=SETS
# Runs: 18: DBP at 5 temperatures and uniform, 3 seeds each.
# Cost (estimate), hours of one H100 SXM: FLOP / (989.4 TFLOP/s x 0.25), the 0.25 assumed; clustering, evaluation not counted:
#   18 x      150 M samples x 44.1 GFLOP = 134 h  ViT-B/32
#    1 x       50 M pictures x 162.0 GFLOP = 9.1 h  DINOv2 ViT-L/14, once for all studies on LAION-50M
#   in all 143 h
# Expect: not known. The paper took 0.1; its published code has 0.5 as default.
# Assumed: The values but 0.1 and 0.5. That LAION-50M was drawn after dedup. Batch, rates and warm-up of DataComp
#   medium; the paper's were not found.
set -euo pipefail
exec dbp sweep experiment=temperature launcher="${LAUNCHER:-slurm}" "$@"
