#!/usr/bin/env bash
# Reproduces: no single table: the selections of 2022 to 2026 at 30 % of DataComp medium, from its metadata alone;
#   beside Gadre et al. 2023 (DataComp), table 3, medium, and Wang et al. 2024 (s-CLIPLoss and NormSim).
# Bring: DataComp medium: its metadata folder, the tars of its downloader, the evaluation sets in DataComp's layout:
#     slurm/studies/field_datacomp_medium.sh pool.metadata=METADATA pool.shards='SHARDS/*.tar' root=SETS
#   A keep list alone needs the folder alone: dbp curate experiment=field_datacomp_medium pool.metadata=METADATA select=…
# Runs: 54: 18 arms of 3 seeds: unpruned; uniform at 30 and 20 %; CLIP score, s-CLIPLoss, NormSim, NormSim-D and both;
#   soft and hard cap; SSP, DBP, DBP of the better half and its control; hierarchical, DynamiCS, coverage; MetaCLIP.
# Cost (estimate), hours of one H100 SXM: FLOP / (989.4 TFLOP/s x 0.25), the 0.25 assumed; choosing, evaluation not counted:
#   54 x      128 M samples x 44.1 GFLOP = 342 h  ViT-B/32
#   in all 342 h
# Expect: ImageNet and mean of 38, percent: unpruned 17.6 and 25.8, CLIP score 27.3 and 32.8 (Gadre et al. 2023,
#   table 3); s-CLIPLoss 28.8 and 34.4, with NormSim to ImageNet 32.8 and 35.3 (a note). Others: not known with these
#   features. dbp report paper=field prints what is published beside ours.
# Assumed: Settings that name no source (configs/experiment/field_datacomp.yaml). Features are CLIP ViT-L/14's, also where
#   a method has another encoder: DBP and DynamiCS cluster in DINOv2.
set -euo pipefail
exec dbp sweep experiment=field_datacomp_medium launcher="${LAUNCHER:-slurm}" "$@"
