#!/usr/bin/env bash
# Reproduces: no single table: the CLIP-score filter between dedup and DBP, as Abbas et al. 2024 (DBP) have it for
#   DataComp, against clusters that are fitted after the filter, and against no filter.
# Bring: DataComp medium: its metadata folder, the tars of its downloader, the evaluation sets in DataComp's layout,
#   and, by dbp prefetch, the weights of DINOv2 ViT-L/14:
#     slurm/studies/stage_order.sh pool.metadata=METADATA pool.shards='SHARDS/*.tar' root=SETS
#   Where another number of pairs than 120 M could be downloaded: dedup.num_kept=N, 80 % of it.
# Runs: 18: 6 arms of 3 seeds, 19.2 M kept: uniform and DBP with the filter and without, DBP with clusters of the
#   filtered rows, CLIP score alone.
#   Not in one sweep: the score before dedup, and the score after DBP. The recipe's order is dedup, filter, select,
#   and no setting changes it. By hand: make the first list, write its pairs as a pool, and sweep over that with
#   pool=webdataset and filter=none:
#     dbp export keep=KEY format=webdataset out=FIRST
# Cost (estimate), hours of one H100 SXM: FLOP / (989.4 TFLOP/s x 0.25), the 0.25 assumed; clustering, evaluation not counted:
#   18 x      128 M samples x 44.1 GFLOP = 114 h  ViT-B/32
#    1 x      120 M pictures x 162.0 GFLOP = 22 h  DINOv2 ViT-L/14, once for all studies on DataComp medium
#   in all 136 h
# Expect: not known.
# Assumed: That the filter keeps half, and the size. Which encoder dedup uses, and its epsilon; 96 M of 120 M is by
#   a review.
set -euo pipefail
exec dbp sweep experiment=stage_order launcher="${LAUNCHER:-slurm}" "$@"
