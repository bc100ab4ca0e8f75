"""A configuration that trains in a second: ResNet-18, drawn images of 96 pixels, batches of two."""

from __future__ import annotations

from pathlib import Path

SMALL = """
_BASE_:
- {configs}/runtime.yml
- {configs}/_base_/fcos_r50_fpn.yml
- {configs}/_base_/optimizer_1x.yml
- {configs}/_base_/fcos_reader.yml
num_classes: 3
save_dir: {output}
device: cpu
epoch: 1
worker_num: 0
lr_batch_size: null
log_iter: 1
pretrain_weights: null
ResNet: {{depth: 18, freeze_at: -1, freeze_norm: false}}
PPFCOSFPN: {{out_channels: 64}}
PPFCOSHead: {{num_convs: 1}}
LearningRate:
  schedulers:
  - !PiecewiseDecay
    gamma: 0.1
    milestones: [8, 11]
  - !LinearWarmup
    start_factor: 0.1
    steps: 3
TrainDataset:
  name: COCODataSet
  dataset_dir: {data}
  image_dir: train2017
  anno_path: annotations/instances_train2017.json
EvalDataset:
  name: COCODataSet
  dataset_dir: {data}
  image_dir: val2017
  anno_path: annotations/instances_val2017.json
TrainReader:
  total_batch_size: 2
  sample_transforms:
  - Decode: {{}}
  - RandomFlip: {{}}
  - Resize: {{target_size: [96, 96], keep_ratio: true, interp: 1}}
  - Permute: {{}}
EvalReader:
  batch_size: 2
  sample_transforms:
  - Decode: {{}}
  - Resize: {{target_size: [96, 96], keep_ratio: true, interp: 1}}
  - Permute: {{}}
"""


def write_config(path: Path, root: Path, data: Path, output: Path) -> Path:
    """Write the configuration for images drawn by ppfcos.data.shapes."""
    path.write_text(SMALL.format(configs=root / "configs", data=data, output=output))
    return path
