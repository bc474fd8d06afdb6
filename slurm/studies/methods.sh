#!/usr/bin/env bash
# Reproduces: no single table: SSP, DBP, CLIP score and uniform at one budget of samples and four sizes of set.
# Bring: 50 M pairs, drawn by chance from what SemDeDup leaves of LAION-CAT-440M, as tars; they can be made by
#     dbp curate experiment=on_laion_440m pool.shards=LAION select=uniform budget.num_kept=50000000
#     dbp export keep=KEY format=webdataset out=LAION50M
#   the evaluation sets in DataComp's layout; and, by dbp prefetch, the weights of DINOv2 ViT-L/14 and of OpenAI's CLIP
#   ViT-B/16:
#     slurm/studies/methods.sh pool.shards='LAION50M/*.tar' root=SETS
# Runs: 51: 17 arms of 3 seeds: uniform, CLIP score, SSP and DBP at 10, 20, 30 and 40 M; unpruned.
# Cost (estimate), hours of one H100 SXM: FLOP / (989.4 TFLOP/s x 0.25), the 0.25 assumed; clustering, evaluation not counted:
#   51 x      150 M samples x 44.1 GFLOP = 379 h  ViT-B/32
#    1 x       50 M pictures x 162.0 GFLOP = 9.1 h  DINOv2 ViT-L/14, once for all studies on LAION-50M
#    1 x       50 M pictures x 41.1 GFLOP = 2.3 h  CLIP ViT-B/16, pictures and captions, once likewise
#   in all 390 h
# Expect: not known. In words: DBP above SSP and above CLIP score (Abbas et al. 2024).
# Assumed: The sizes. That LAION-50M was drawn after dedup. Batch, rates and warm-up of DataComp medium; the paper's
#   were not found.
set -euo pipefail
exec dbp sweep experiment=methods launcher="${LAUNCHER:-slurm}" "$@"
