#!/usr/bin/env bash
# Reproduces: Abbas et al. 2024 (DBP), the encoder and modality that DBP clusters in.
# Bring: 50 M pairs, drawn by chance from what SemDeDup leaves of LAION-CAT-440M, as tars; they can be made by
#     dbp curate experiment=on_laion_440m pool.shards=LAION select=uniform budget.num_kept=50000000
#     dbp export keep=KEY format=webdataset out=LAION50M
#   the evaluation sets in DataComp's layout; and, by dbp prefetch, the weights of DINOv2 ViT-L/14 and of OpenAI's CLIP
#   ViT-B/16:
#     slurm/studies/encoders.sh pool.shards='LAION50M/*.tar' root=SETS
#   The paper also tried Sentence-BERT, BLIP's matching head and DINOv2 without distillation, which are not built
#   in; vectors that another tool made (one row a pair, in the pool's order) are a further arm:
#     '+sweep.arms.bert={select: dbp, encoder.cluster: precomputed, encoder.cluster.images: FILE.npy}'
# Runs: 15: uniform and DBP in DINOv2 image, CLIP image, CLIP text and CLIP joint vectors, 3 seeds each.
# Cost (estimate), hours of one H100 SXM: FLOP / (989.4 TFLOP/s x 0.25), the 0.25 assumed; clustering, evaluation not counted:
#   15 x      150 M samples x 44.1 GFLOP = 111 h  ViT-B/32
#    1 x       50 M pictures x 162.0 GFLOP = 9.1 h  DINOv2 ViT-L/14, once for all studies on LAION-50M
#    1 x       50 M pictures x 41.1 GFLOP = 2.3 h  CLIP ViT-B/16, pictures and captions, once likewise
#   in all 123 h
# Expect: ImageNet: DINOv2 about 0.2 points above CLIP ViT-B/16's image vectors (a review). Numbers: not known.
# Assumed: That LAION-50M was drawn after dedup. Batch, rates and warm-up of DataComp medium; the paper's were not
#   found.
set -euo pipefail
exec dbp sweep experiment=encoders launcher="${LAUNCHER:-slurm}" "$@"
