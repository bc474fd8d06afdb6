#!/usr/bin/env bash
# Reproduces: Abbas et al. 2024 (DBP, arXiv 2401.04578), figure 1: 84, 112, 166 and 222 M of the 277 M pairs that
#   SemDeDup leaves of LAION-CAT-440M, 32 epochs each, ViT-B/32; SSP and uniform, which the figure has not, beside.
# Bring: LAION-CAT-440M as tars, the evaluation sets in DataComp's layout, and, by dbp prefetch, the weights of DINOv2
#   ViT-L/14 and of OpenAI's CLIP ViT-B/16:
#     slurm/studies/laion.sh pool.shards='LAION/{00000..43999}.tar' root=SETS
#   What is left of 440 M today is less: say dedup.num_kept=N, 63 % of what there is.
# Runs: 18 of one seed, as in the paper: uniform, CLIP score, SSP and DBP at 4 sizes; the 277 M; the unpruned 440 M.
# Cost (estimate), hours of one H100 SXM: FLOP / (989.4 TFLOP/s x 0.25), the 0.25 assumed; clustering, evaluation not counted:
#    1 x   12,800 M samples x 44.1 GFLOP = 634 h  unpruned, 12.8 B samples
#    1 x    8,864 M samples x 44.1 GFLOP = 439 h  277 M for 32 epochs
#    4 x  2,659.2 M samples x 44.1 GFLOP = 527 h  83.1 M for 32 epochs
#    4 x  3,545.6 M samples x 44.1 GFLOP = 702 h  110.8 M for 32 epochs
#    4 x  5,318.4 M samples x 44.1 GFLOP = 1,054 h  166.2 M for 32 epochs
#    4 x  7,091.2 M samples x 44.1 GFLOP = 1,405 h  221.6 M for 32 epochs
#    1 x      440 M pictures x 162.0 GFLOP = 80 h  DINOv2 ViT-L/14, once for all studies on LAION-440M
#    1 x      440 M pictures x 41.1 GFLOP = 20 h  CLIP ViT-B/16, pictures and captions, once likewise
#   in all 4,861 h
# Expect: ImageNet zero-shot, measured in the figure: unpruned 64.08, the 277 M 64.31; DBP 62.53 (84 M), 64.08
#   (112 M), 65.44 (166 M), below that at 222 M (a review, no number); CLIP score 61.63 (166 M). SSP, uniform, and
#   CLIP score at other sizes: not known.
# Assumed: Batch, rates and warm-up are SemDeDup's (Abbas et al. 2023, table A3, same code base). Dedup, whose
#   epsilon was not found, is by OpenAI's ViT-B/16, to a number of rows. 0.3, 0.4, 0.6 and 0.8 of 277 M stand for
#   the sizes. The CLIP-B/16 of the score is OpenAI's. One run takes days of a GPU: give an arm several (`arm` in a
#   launcher file of your own).
set -euo pipefail
exec dbp sweep experiment=laion launcher="${LAUNCHER:-slurm}" "$@"
