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
    "upsampler": """
name: upsampler
about: An image made smaller and larger again, by transposed convolutions, a softmax over channels and a pool that counts its padding.
data: {dataset: digits, test: 0.2, batch: 32}
networks:
  painter:
    inputs: [image]
    layers:
      - conv2d: {channels: 6, kernel: 3, stride: 2, padding: same}
      - softmax
      - conv_transpose2d: {channels: 4, kernel: 3, stride: 2, padding: same}
      - leaky_relu: 0.2
      - avg_pool2d: {window: 3, stride: 1, padding: 1, count_padding: true}
      - conv_transpose2d: {channels: 4, kernel: 3, padding: 1}
      - leaky_relu: 0.2
      - conv_transpose2d: {channels: 1, kernel: 3, padding: 1}
training:
  steps: 12
  updates:
    - loss: {mse: {predictions: painter(image), targets: image}}
      optimizer: {sgd: {learning_rate: 0.5, momentum: 0.9}}
      schedule: {cosine: {}}
""",
    "small_vit": """
name: small_vit
about: A transformer encoder of four pre-norm blocks over 8 x 8 patches of a coloured image of 32 x 32, as small as it can be.
data:
  dataset: random
  examples: 64
  fields: {image: {shape: [32, 32, 3]}, label: {classes: 10}}
  batch: 8
blocks:
  encoder_block:
    layers:
      - residual:
          - layer_norm
          - attention: 4
      - residual:
          - layer_norm
          - dense: 64
          - gelu
          - dense: 32
networks:
  encoder:
    inputs: [image]
    layers:
      - conv2d: {channels: 32, kernel: 8, stride: 8}
      - reshape: [16, 32]
      - positions
      - encoder_block
      - encoder_block
      - encoder_block
      - encoder_block
      - layer_norm
      - flatten
      - dense: {units: 10, name: logits}
training:
  steps: 12
  updates:
    - loss: {softmax_cross_entropy: {logits: encoder(image), labels: label}}
      optimizer: {adamw: {learning_rate: 0.001, weight_decay: 0.05}}
      schedule: {cosine: {warmup: 4}}
      clip: {global_norm: 1.0}
""",
    "resnet18": """
name: resnet18
about: A ResNet of 18 layers for images of 32 x 32, a quarter as wide as the usual one, on drawn images.
data:
  dataset: random
  examples: 64
  fields: {image: {shape: [32, 32, 3]}, label: {classes: 10}}
  batch: 8
blocks:
  basic:
    parameters: {channels: ~}
    layers:
      - residual:
          - conv2d: {channels: $channels, kernel: 3, padding: 1, bias: false, kernel_init: he_normal}
          - batch_norm
          - relu
          - conv2d: {channels: $channels, kernel: 3, padding: 1, bias: false, kernel_init: he_normal}
          - batch_norm
      - relu
  down:
    parameters: {channels: ~}
    layers:
      - residual:
          layers:
            - conv2d: {channels: $channels, kernel: 3, stride: 2, padding: 1, bias: false, kernel_init: he_normal}
            - batch_norm
            - relu
            - conv2d: {channels: $channels, kernel: 3, padding: 1, bias: false, kernel_init: he_normal}
            - batch_norm
          shortcut:
            - conv2d: {channels: $channels, kernel: 1, stride: 2, bias: false, kernel_init: he_normal}
            - batch_norm
      - relu
networks:
  classifier:
    inputs: [image]
    layers:
      - conv2d: {channels: 16, kernel: 3, padding: 1, bias: false, kernel_init: he_normal}
      - batch_norm
      - relu
      - basic: {channels: 16}
      - basic: {channels: 16}
      - down: {channels: 32}
      - basic: {channels: 32}
      - down: {channels: 64}
      - basic: {channels: 64}
      - down: {channels: 128}
      - basic: {channels: 128}
      - global_avg_pool
      - dense: {units: 10, name: logits}
training:
  steps: 12
  updates:
    - loss: {softmax_cross_entropy: {logits: classifier(image), labels: label}}
      optimizer: {sgd: {learning_rate: 0.05, momentum: 0.9, nesterov: true}}
      schedule: {cosine: {}}
""",
}
