#!/usr/bin/env bash
# Reproduces: no single table: SSP and DBP with and without SemDeDup before them, at one size (Abbas et al. 2024
#   dedup first, since groups of duplicates would be clusters of their own).
# Bring: DataComp medium: its metadata folder, the tars of its downloader, the evaluation sets in DataComp's layout,
#   and, by dbp prefetch, the weights of DINOv2 ViT-L/14:
#     slurm/studies/dedup.sh pool.metadata=METADATA pool.shards='SHARDS/*.tar' root=SETS
#   Where another number of pairs than 120 M could be downloaded: dedup.num_kept=N, 80 % of it.
# Runs: 18: uniform, SSP and DBP, with dedup and without, 3 seeds each; 38.4 M kept of 96 M or of 120 M, no filter.
# Cost (estimate), hours of one H100 SXM: FLOP / (989.4 TFLOP/s x 0.25), the 0.25 assumed; clustering, evaluation not counted:
#   18 x      128 M samples x 44.1 GFLOP = 114 h  ViT-B/32
#    1 x      120 M pictures x 162.0 GFLOP = 22 h  DINOv2 ViT-L/14, once for all studies on DataComp medium
#   in all 136 h
# Expect: not known.
# Assumed: The size, 30 % of 128 M. On DataComp medium, since its pool is not deduplicated and its runs are short.
#   Which encoder dedup uses, and its epsilon; 96 M of 120 M is by a review.
set -euo pipefail
exec dbp sweep experiment=dedup launcher="${LAUNCHER:-slurm}" "$@"
