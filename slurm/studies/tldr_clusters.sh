#!/usr/bin/env bash
# Reproduces: Wang et al. 2023 (TL;DR), table 2f: the number of clusters of codes, 100 to 10,000.
# Bring: CC3M as tars, the evaluation sets in DataComp's layout, and, by dbp prefetch, the weights of DeiT's ViT-B/16
#   and of OpenAI's CLIP ViT-B/16:
#     slurm/studies/tldr_clusters.sh pool.shards='CC3M/*.tar' root=SETS
# Runs: 18: TL;DR at 5 numbers of clusters and uniform, 3 seeds each.
# Cost (estimate), hours of one H100 SXM: FLOP / (989.4 TFLOP/s x 0.25), the 0.25 assumed; clustering, evaluation not counted:
#   18 x     14.1 M samples x 123.0 GFLOP = 35 h  ViT-B/16
#    1 x     14.1 M pictures x 85.0 GFLOP = 1.3 h  the captioner, once for all studies on CC3M
#    1 x      2.8 M pictures x 35.1 GFLOP = 0.1 h  codes, once likewise
#    1 x      2.8 M pictures x 41.1 GFLOP = 0.1 h  CLIP ViT-B/16, pictures and captions, once likewise
#   in all 37 h
# Expect: not known for CLIP. BLIP, fine-tuned on COCO, R@1 of texts and images: 71.8 and 53.9 at 100, 72.8 and 54.8 at
#   3,000, 72.3 and 54.2 at 10,000 (table 2f); uniform with original captions 65.3 and 49.8 (table 2a).
# Assumed: ViT-B/16 as the CLIP that is trained, 1,024 codes (the code's; the text says 3,000), the captioner's
#   5 passes over CC3M without COCO and Visual Genome after them, a cosine in place of 0.85 an epoch.
set -euo pipefail
exec dbp sweep experiment=tldr_clusters launcher="${LAUNCHER:-slurm}" "$@"
