"""Tiny specs for faults that no spec of the collection can show: padded pools, a smaller last batch, a GRU, an untied embedding."""

PROBES = {
    "padded_pools": """
name: padded_pools
about: Pools with padding, momentum without Nesterov, a staircase, and clipping value by value.
data: {dataset: digits, test: 0.2, batch: 32}
networks:
  classifier:
    inputs: [image]
    layers:
      - conv2d: {channels: 4, kernel: 3, padding: same, bias_init: {normal: {std: 0.5}}}
      - max_pool2d: {window: 3, stride: 2, padding: [[1, 0], [1, 0]]}
      - tanh
      - avg_pool2d: {window: 3, stride: 2, padding: 1}
      - flatten
      - dense: {units: 10, name: logits}
training:
  steps: 12
  updates:
    - loss: {softmax_cross_entropy: {logits: classifier(image), labels: label}}
      optimizer: {sgd: {learning_rate: 0.05, momentum: 0.9}}
      schedule: {step: {every: 2, multiply_by: 0.5}}
      clip: {value: 0.01}
""",
    "smaller_last_batch": """
name: smaller_last_batch
about: Seven points in batches of three, so that the last batch of each pass holds one.
data:
  dataset: inline
  values:
    x: [[1.0, 2.0], [3.0, 4.0], [-1.0, 0.5], [0.5, -2.0], [2.0, 1.0], [-1.5, -0.5], [0.0, 1.5]]
    y: [[2.0], [6.0], [-0.5], [-1.0], [2.5], [-2.0], [1.0]]
  batch: 3
  last_batch: keep
networks:
  model:
    inputs: [x]
    layers:
      - dense: {units: 4, name: hidden}
      - silu
      - dense: {units: 1, name: linear}
training:
  steps: 9
  updates:
    - loss: {mse: {predictions: model(x), targets: y}}
      optimizer: {adamw: {learning_rate: 0.02, weight_decay: 0.1, no_decay: [bias]}}
""",
    "digits_gru": """
name: digits_gru
about: A handwritten digit read row by row by a gated recurrent unit.
data: {dataset: digits, test: 0.2, batch: 32}
networks:
  classifier:
    inputs: [image]
    layers:
      - reshape: [8, 8]
      - gru: {units: 16, returns: last}
      - dense: {units: 10, name: logits}
training:
  steps: 12
  updates:
    - loss: {softmax_cross_entropy: {logits: classifier(image), labels: label}}
      optimizer: {adam: {learning_rate: 0.005}}
""",
    "untied_embedding": """
name: untied_embedding
about: An embedding that nothing else shares, ids that repeat, gradients clipped by their common norm.
data:
  dataset: inline
  values:
    ids: [[0, 1, 1], [2, 2, 2], [3, 0, 1], [4, 4, 0]]
    y: [[2.0], [-1.0], [0.5], [1.5]]
  batch: 2
networks:
  reader:
    inputs: [ids]
    layers:
      - embedding: {features: 3, vocabulary: 5, embedding_init: {normal: {std: 0.5}}}
      - positions
      - flatten
      - dense: {units: 1, name: linear}
training:
  steps: 8
  updates:
    - loss: {mse: {predictions: reader(ids), targets: y}}
      optimizer: {sgd: {learning_rate: 0.05}}
      clip: {global_norm: 0.5}
""",
}
