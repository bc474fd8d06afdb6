#!/usr/bin/env bash
# Reproduces: Wang et al. 2023 (TL;DR), table 2a: sampling and refining apart; and three ways to mix captions.
# Bring: CC3M as tars, the evaluation sets in DataComp's layout, and, by dbp prefetch, the weights of DeiT's ViT-B/16
#   and of OpenAI's CLIP ViT-B/16:
#     slurm/studies/tldr_captions.sh pool.shards='CC3M/*.tar' root=SETS
# Runs: 24: TL;DR and uniform, each with 4 ways of captions, 3 seeds each.
# Cost (estimate), hours of one H100 SXM: FLOP / (989.4 TFLOP/s x 0.25), the 0.25 assumed; clustering, evaluation not counted:
#   24 x     14.1 M samples x 123.0 GFLOP = 47 h  ViT-B/16
#    1 x     14.1 M pictures x 85.0 GFLOP = 1.3 h  the captioner, once for all studies on CC3M
#    1 x      2.8 M pictures x 35.1 GFLOP = 0.1 h  codes, once likewise
#    1 x      2.8 M pictures x 41.1 GFLOP = 0.1 h  CLIP ViT-B/16, pictures and captions, once likewise
#   in all 48 h
# Expect: not known for CLIP. BLIP, fine-tuned on COCO, R@1 of texts and images: neither 65.3 and 49.8, one of both 68.5 and
#   51.9 or 69.4 and 52.3, both 72.8 and 54.8 (table 2a). In words: replaced captions alone make the loss collapse.
# Assumed: alternating, and its ratio. ViT-B/16 as the CLIP that is trained, 1,024 codes (the code's; the text says
#   3,000), the captioner's
#   5 passes over CC3M without COCO and Visual Genome after them, a cosine in place of 0.85 an epoch.
set -euo pipefail
exec dbp sweep experiment=tldr_captions launcher="${LAUNCHER:-slurm}" "$@"
