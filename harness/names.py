"""Names that a spec may not use, because emitted programs need them for something else."""

ATTRIBUTES = frozenset(
    """
    T_destination activity_regularizer add_loss add_metric add_module add_variable add_weight apply autocast
    bfloat16 buffers build build_from_config built call call_signature_parameters call_super_init children
    compile compile_from_config compiled compiled_loss compiled_metrics compute_dtype compute_loss compute_mask
    compute_metrics compute_output_shape compute_output_spec count_params cpu cuda distribute_reduction_method
    distribute_strategy double dtype dtype_policy dump_patches eval evaluate export extra_repr fit float forward
    from_config get_buffer get_build_config get_compile_config get_config get_extra_state get_layer
    get_metrics_result get_parameter get_quantization_layer_structure get_state_tree get_submodule get_weights
    half input input_dtype input_spec ipu iter_children iter_modules jit_compile layers load_own_variables
    load_state_dict load_weights loss losses make_predict_function make_test_function make_train_function
    metrics metrics_names metrics_variables modules mtia name named_buffers named_children named_modules
    named_parameters non_trainable_variables non_trainable_weights output parameters path perturb predict
    predict_function predict_on_batch predict_step quantization_mode quantize quantized_build quantized_call
    register_backward_hook register_buffer register_forward_hook register_forward_pre_hook
    register_full_backward_hook register_full_backward_pre_hook register_load_state_dict_post_hook
    register_load_state_dict_pre_hook register_module register_parameter register_state_dict_post_hook
    register_state_dict_pre_hook rematerialized_call requires_grad_ reset_metrics run_eagerly save
    save_own_variables save_weights set_attributes set_extra_state set_state_tree set_submodule set_weights
    share_memory sow state_dict stateless_call stateless_compute_loss steps_per_execution summary supports_jit
    supports_masking symbolic_call test_function test_on_batch test_step to to_empty to_json train
    train_function train_on_batch train_step trainable trainable_variables trainable_weights training type
    unrolled_steps_per_execution variable_dtype variables weights xpu zero_grad
    """.split()
)
"""What `nn.Module`, `keras.Model`, `keras.layers.Layer` and `nnx.Module` call their own: no layer can be called so.

`tests/test_frameworks.py` compares this with the frameworks that are installed.
"""

VARIABLES = frozenset(
    """
    F absolute_error all_but batch clip_by_global_norm dropout_masks gelu graphdef jax jnp keras layers
    leaky_relu learning_rate load_batch load_file load_parameters loss loss_fn losses main masks math minimise
    model nn nnx np ops optax optimizer optimizers os parameters partial self state statistics step sys tf torch
    to_tensors train_step training unflatten_dict
    """.split()
)
"""Local and module-level names of emitted programs: no input, value or field can be called so."""

FIELDS = frozenset({"masks", "order"})
"""What a batch and the run's inputs hold beside the data."""

CLASSES = frozenset(
    """
    Adam AdamW Array Attention Axes BatchNorm BatchNorm1d BatchNorm2d Callable DroppedAttention DroppedGRU DroppedLSTM
    GRUCell GRU Gradients Iterable LSTM Learning LearningRate NamedTuple NesterovSGD Path Positions SGD SelfAttention State Tensor
    """.split()
)
"""Classes that emitted programs import or define: a network or block of that name gets `Network` after it."""
