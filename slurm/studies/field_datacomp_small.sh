#!/usr/bin/env bash
# Reproduces: no single table: the selections of 2022 to 2026 at 30 % of DataComp small, from its metadata alone;
#   beside Gadre et al. 2023 (DataComp), table 3, small.
# Bring: DataComp small: its metadata folder, the tars of its downloader, the evaluation sets in DataComp's layout:
#     slurm/studies/field_datacomp_small.sh pool.metadata=METADATA pool.shards='SHARDS/*.tar' root=SETS
#   A keep list alone needs the folder alone: dbp curate experiment=field_datacomp_small pool.metadata=METADATA select=…
# Runs: 54: 18 arms of 3 seeds: unpruned; uniform at 30 and 20 %; CLIP score, s-CLIPLoss, NormSim, NormSim-D and both;
#   soft and hard cap; SSP, DBP, DBP of the better half and its control; hierarchical, DynamiCS, coverage; MetaCLIP.
# Cost (estimate), hours of one H100 SXM: FLOP / (989.4 TFLOP/s x 0.25), the 0.25 assumed; choosing, evaluation not counted:
#   54 x     12.8 M samples x 44.1 GFLOP = 34 h  ViT-B/32
#   in all 34 h
# Expect: ImageNet and mean of 38, percent: unpruned 2.5 and 13.2, CLIP score 5.1 and 17.3 (Gadre et al. 2023, table 3).
#   Others: not known at this scale.
# Assumed: Settings that name no source (configs/experiment/field_datacomp.yaml). Features are CLIP ViT-L/14's, also where
#   a method has another encoder: DBP and DynamiCS cluster in DINOv2.
set -euo pipefail
exec dbp sweep experiment=field_datacomp_small launcher="${LAUNCHER:-slurm}" "$@"
