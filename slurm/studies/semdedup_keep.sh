#!/usr/bin/env bash
# Reproduces: Abbas et al. 2023 (SemDeDup, arXiv 2303.09540), table 3: which of a group of duplicates stays, at 40 %
#   kept.
# Bring: LAION-CAT-440M as tars, the evaluation sets in DataComp's layout, and, by dbp prefetch, the weights of
#   OpenAI's CLIP ViT-B/16:
#     slurm/studies/semdedup_keep.sh pool.shards='LAION/{00000..43999}.tar' root=SETS
#   What is left of 440 M today is less: then 176 M are another share of it.
# Runs: 4 of one seed, for their cost: SemDeDup keeping the farthest from the centroid (hard), a random one or the
#   nearest (easy), and uniform of equal size from all rows.
# Cost (estimate), hours of one H100 SXM: FLOP / (989.4 TFLOP/s x 0.25), the 0.25 assumed; clustering, evaluation not counted:
#    4 x    5,632 M samples x 123.0 GFLOP = 3,112 h  ViT-B/16, 32 epochs of 176 M
#    1 x      440 M pictures x 35.1 GFLOP = 17 h  CLIP ViT-B/16, pictures, once for all studies on LAION-440M
#   in all 3,129 h
# Expect: ImageNet zero-shot: 66.90 hard, 66.90 random, 66.73 easy; uniform 64.82 (table A4).
# Assumed: The weights of dedup are OpenAI's: SemDeDup's own CLIP, trained on LAION-440M, is not known to be
#   published (66.96 against 66.90, table 2). Dedup goes to a number of rows, since epsilon at 40 % kept was not
#   found.
set -euo pipefail
exec dbp sweep experiment=semdedup_keep launcher="${LAUNCHER:-slurm}" "$@"
