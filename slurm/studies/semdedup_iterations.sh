#!/usr/bin/env bash
# Reproduces: Abbas et al. 2023 (SemDeDup, arXiv 2303.09540), table A6: 40 to 70 % kept, each trained for as many
#   iterations as the whole set.
# Bring: LAION-CAT-440M as tars, the evaluation sets in DataComp's layout, and, by dbp prefetch, the weights of
#   OpenAI's CLIP ViT-B/16:
#     slurm/studies/semdedup_iterations.sh pool.shards='LAION/{00000..43999}.tar' root=SETS
#   What is left of 440 M today is less: then the sizes are other shares of it.
# Runs: 9 of one seed, for their cost: SemDeDup and uniform, from all rows, at 176, 220, 264 and 308 M; unpruned.
# Cost (estimate), hours of one H100 SXM: FLOP / (989.4 TFLOP/s x 0.25), the 0.25 assumed; clustering, evaluation not counted:
#    9 x   14,080 M samples x 123.0 GFLOP = 17,504 h  ViT-B/16, 32 epochs of 440 M
#    1 x      440 M pictures x 35.1 GFLOP = 17 h  CLIP ViT-B/16, pictures, once for all studies on LAION-440M
#   in all 17,521 h
# Expect: ImageNet zero-shot: unpruned 68.74; SemDeDup 68.35 (40 %), 68.92 (50 %), 69.04 (60 %), 69.14 (70 %).
#   Uniform: not known.
# Assumed: The weights of dedup are OpenAI's: SemDeDup's own CLIP, trained on LAION-440M, is not known to be
#   published (66.96 against 66.90, table 2). Dedup goes to a number of rows, since its epsilons were not found.
set -euo pipefail
exec dbp sweep experiment=semdedup_iterations launcher="${LAUNCHER:-slurm}" "$@"
