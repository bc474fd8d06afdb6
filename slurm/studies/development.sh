#!/usr/bin/env bash
# Reproduces: Abbas et al. 2024 (DBP): the set-up in which its settings were chosen: LAION-50M cut to 30 M, 5
#   epochs, ViT-B/32.
# Bring: 50 M pairs, drawn by chance from what SemDeDup leaves of LAION-CAT-440M, as tars; they can be made by
#     dbp curate experiment=on_laion_440m pool.shards=LAION select=uniform budget.num_kept=50000000
#     dbp export keep=KEY format=webdataset out=LAION50M
#   the evaluation sets in DataComp's layout; and, by dbp prefetch, the weights of DINOv2 ViT-L/14 and of OpenAI's CLIP
#   ViT-B/16:
#     slurm/studies/development.sh pool.shards='LAION50M/*.tar' root=SETS
# Runs: 18: 6 arms of 3 seeds: unpruned at 150 M samples and at its own 5 epochs, uniform, CLIP score, SSP, DBP.
# Cost (estimate), hours of one H100 SXM: FLOP / (989.4 TFLOP/s x 0.25), the 0.25 assumed; clustering, evaluation not counted:
#   15 x      150 M samples x 44.1 GFLOP = 111 h  ViT-B/32
#    3 x      250 M samples x 44.1 GFLOP = 37 h  5 epochs of 50 M
#    1 x       50 M pictures x 162.0 GFLOP = 9.1 h  DINOv2 ViT-L/14, once for all studies on LAION-50M
#    1 x       50 M pictures x 41.1 GFLOP = 2.3 h  CLIP ViT-B/16, pictures and captions, once likewise
#   in all 160 h
# Expect: not known. The paper has them as a figure that was not seen.
# Assumed: That LAION-50M was drawn after dedup. Batch, rates and warm-up of DataComp medium; the paper's were not
#   found.
set -euo pipefail
exec dbp sweep experiment=development launcher="${LAUNCHER:-slurm}" "$@"
