#!/usr/bin/env bash
# Reproduces: Abbas et al. 2023 (SemDeDup, arXiv 2303.09540), table 2: what pictures are compared in, at 40 % kept.
# Bring: LAION-CAT-440M as tars, the evaluation sets in DataComp's layout, and, by dbp prefetch, the weights of
#   OpenAI's and OpenCLIP's (LAION-400M) CLIP ViT-B/16 and of DINOv2 ViT-L/14:
#     slurm/studies/semdedup_encoder.sh pool.shards='LAION/{00000..43999}.tar' root=SETS
#   What is left of 440 M today is less: then 176 M are another share of it.
# Runs: 4 of one seed, for their cost: SemDeDup in 3 encoders, and uniform of equal size from all rows.
# Cost (estimate), hours of one H100 SXM: FLOP / (989.4 TFLOP/s x 0.25), the 0.25 assumed; clustering, evaluation not counted:
#    4 x    5,632 M samples x 123.0 GFLOP = 3,112 h  ViT-B/16, 32 epochs of 176 M
#    2 x      440 M pictures x 35.1 GFLOP = 35 h  CLIP ViT-B/16, pictures, of OpenAI and of OpenCLIP
#    1 x      440 M pictures x 162.0 GFLOP = 80 h  DINOv2 ViT-L/14, once for all studies on LAION-440M
#   in all 3,227 h
# Expect: ImageNet zero-shot: 66.96 with OpenAI's CLIP, 66.90 with a CLIP trained on LAION-440M, for which
#   OpenCLIP's of LAION-400M stands; uniform 64.82 (table A4). DINOv2: not known.
# Assumed: Dedup goes to a number of rows, since epsilon at 40 % kept was not found.
set -euo pipefail
exec dbp sweep experiment=semdedup_encoder launcher="${LAUNCHER:-slurm}" "$@"
