#!/usr/bin/env bash
# Reproduces: Gadre et al. 2023 (DataComp), table 3, medium: no filter, and the best 30 % by CLIP ViT-L/14 score;
#   Abbas et al. 2024 (DBP), table 1: SemDeDup, then CLIP score, then DBP with k = 100.
# Bring: DataComp medium: its metadata folder, the tars of its downloader, the evaluation sets in DataComp's layout,
#   and, by dbp prefetch, the weights of DINOv2 ViT-L/14:
#     slurm/studies/datacomp_medium.sh pool.metadata=METADATA pool.shards='SHARDS/*.tar' root=SETS
#   Where another number of pairs than 120 M could be downloaded: dedup.num_kept=N, 80 % of it.
# Runs: 27: 9 arms of 3 seeds: unpruned; CLIP score and uniform, 30 % of the pool; uniform, SSP and DBP at 19.2 and
#   38.4 M of the 48 M that dedup and filter leave. `uniform of the pool` is the control of `clip score`.
# Cost (estimate), hours of one H100 SXM: FLOP / (989.4 TFLOP/s x 0.25), the 0.25 assumed; clustering, evaluation not counted:
#   27 x      128 M samples x 44.1 GFLOP = 171 h  ViT-B/32
#    1 x      120 M pictures x 162.0 GFLOP = 22 h  DINOv2 ViT-L/14, once for all studies on DataComp medium
#   in all 193 h
# Expect: ImageNet and mean of 38, percent: unpruned 17.6 and 25.8, CLIP score 27.3 and 32.8 (Gadre et al. 2023,
#   table 3). DBP: not known; in words above T-MARS on ImageNet, VTAB and retrieval, below it on shifts and in the
#   mean. Seeds move ImageNet by 0.2 points and the mean by up to 0.6.
# Assumed: That the filter keeps half, and the two sizes: the paper's were not found. Which encoder dedup uses, and
#   its epsilon; 96 M of 120 M is by a review.
set -euo pipefail
exec dbp sweep experiment=datacomp_medium launcher="${LAUNCHER:-slurm}" "$@"
