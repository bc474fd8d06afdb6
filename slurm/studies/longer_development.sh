#!/usr/bin/env bash
# Reproduces: Abbas et al. 2024 (DBP), figure 5 (left) of the submission: 30 M for 45 epochs close the gap to the
#   whole 50 M.
# Bring: 50 M pairs, drawn by chance from what SemDeDup leaves of LAION-CAT-440M, as tars; they can be made by
#     dbp curate experiment=on_laion_440m pool.shards=LAION select=uniform budget.num_kept=50000000
#     dbp export keep=KEY format=webdataset out=LAION50M
#   the evaluation sets in DataComp's layout; and, by dbp prefetch, the weights of DINOv2 ViT-L/14:
#     slurm/studies/longer_development.sh pool.shards='LAION50M/*.tar' root=SETS
# Runs: 6 of one seed: unpruned, uniform and DBP, for 32 and for 45 epochs of 30 M in samples.
# Cost (estimate), hours of one H100 SXM: FLOP / (989.4 TFLOP/s x 0.25), the 0.25 assumed; clustering, evaluation not counted:
#    3 x      960 M samples x 44.1 GFLOP = 143 h  32 epochs of 30 M
#    3 x    1,350 M samples x 44.1 GFLOP = 201 h  45 epochs of 30 M, 27 of 50 M
#    1 x       50 M pictures x 162.0 GFLOP = 9.1 h  DINOv2 ViT-L/14, once for all studies on LAION-50M
#   in all 352 h
# Expect: DBP's 30 M after 45 epochs equal to the unpruned 50 M, in words. Numbers: not known.
# Assumed: The length of the 50 M run, which was not found: as many samples as the pruned one. That LAION-50M was
#   drawn after dedup. Batch, rates and warm-up of DataComp medium; the paper's were not found.
set -euo pipefail
exec dbp sweep experiment=longer_development launcher="${LAUNCHER:-slurm}" "$@"
