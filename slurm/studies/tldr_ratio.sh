#!/usr/bin/env bash
# Reproduces: Wang et al. 2023 (TL;DR), table 2e: the share that is kept, 10 to 100 %.
# Bring: CC3M as tars, the evaluation sets in DataComp's layout, and, by dbp prefetch, the weights of DeiT's ViT-B/16:
#     slurm/studies/tldr_ratio.sh pool.shards='CC3M/*.tar' root=SETS
# Runs: 21: TL;DR and uniform at 3 shares, and unpruned, 3 seeds each, all with equal samples seen.
# Cost (estimate), hours of one H100 SXM: FLOP / (989.4 TFLOP/s x 0.25), the 0.25 assumed; clustering, evaluation not counted:
#   21 x     14.1 M samples x 123.0 GFLOP = 41 h  ViT-B/16
#    1 x     14.1 M pictures x 85.0 GFLOP = 1.3 h  the captioner, once for all studies on CC3M
#    1 x      2.8 M pictures x 35.1 GFLOP = 0.1 h  codes, once likewise
#   in all 42 h
# Expect: not known for CLIP. BLIP, fine-tuned on COCO, R@1 of texts and images: 68.9 and 52.3 at 10 %, 72.8 and 54.8 at
#   25 %, 74.8 and 55.2 at 50 %, unpruned 70.6 and 54.0 (table 2e), at equal epochs and with refined captions.
# Assumed: ViT-B/16 as the CLIP that is trained, equal samples, 1,024 codes (the code's; the text says 3,000), the captioner's
#   5 passes over CC3M without COCO and Visual Genome after them, a cosine in place of 0.85 an epoch.
set -euo pipefail
exec dbp sweep experiment=tldr_ratio launcher="${LAUNCHER:-slurm}" "$@"
