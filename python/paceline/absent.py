# SPDX-License-Identifier: Apache-2.0
"""Names that scripts import from Accelerate and that paceline does not have, with the reason.

One table, used for the texts of errors and checked against ``docs/from_accelerate.md``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

__all__ = ["MEMBERS", "NAMES", "explain", "missing"]

_BIG = "models larger than one device's memory are out of scope; make the model on the CPU"
_DEEPSPEED = "DeepSpeed is not used; data parallel training needs no plugin"
_FSDP = "parameters are not sharded over processes; data parallel training needs no plugin"
_FP8 = "fp8 is not built; use mixed_precision='bf16'"
_MEGATRON = "Megatron-LM is not used; data parallel training needs no plugin"
_PARALLEL = "only data parallelism is built; use num_processes"
_DYNAMO = "there is nothing to compile; kernels are compiled ahead"
_QUANT = "quantised models are out of scope; use mixed_precision='bf16'"
_CLOUD = "paceline starts processes on machines, not in a cloud service; use `paceline launch`"
_TPU = "TPUs are out of scope; use the CPU or CUDA"
_LAUNCH = "a detail of Accelerate's launcher; use `paceline launch` or notebook_launcher"
_INNER = "a detail of Accelerate's own code; use the public methods of Accelerator"
_FILES = "a checkpoint has other files here; use save_state and load_state"
_TORCH = "it is about PyTorch's own versions and devices; ask torch itself"

#: Reason for each name of ``accelerate`` and ``accelerate.utils`` that is not here.
NAMES: Mapping[str, str] = {
    name: reason
    for reason, names in {
        _BIG: "init_empty_weights init_on_device cpu_offload cpu_offload_with_hook disk_offload "
        "dispatch_model load_checkpoint_and_dispatch load_checkpoint_in_model "
        "infer_auto_device_map prepare_pippy big_modeling hooks inference align_module_device "
        "OffloadedWeightsLoader PrefixedDataset check_device_map compute_module_sizes "
        "check_tied_parameters_in_config check_tied_parameters_on_same_device "
        "ensure_weights_retied extract_submodules_state_dict find_tied_parameters "
        "get_balanced_memory get_max_layer_size get_max_memory has_offloaded_params "
        "id_tensor_storage load_offloaded_weight load_offloaded_weights load_state_dict "
        "named_module_tensors offload offload_state_dict offload_weight retie_parameters "
        "save_offload_index set_module_tensor_to_device dtype_byte_size modeling CustomDtype "
        "get_module_children_bottom_up calculate_maximum_sizes",
        _DEEPSPEED: "DeepSpeedPlugin DeepSpeedSequenceParallelConfig DummyOptim DummyScheduler "
        "GatheredParameters prepare_deepspeed_cmd_env deepspeed_required "
        "compile_regions_deepspeed",
        _FSDP: "FullyShardedDataParallelPlugin merge_fsdp_weights load_fsdp_model "
        "load_fsdp_optimizer save_fsdp_model save_fsdp_optimizer fsdp_utils fsdp2_apply_ac "
        "fsdp2_canonicalize_names fsdp2_load_full_state_dict fsdp2_prepare_model "
        "fsdp2_switch_optimizer_parameters get_fsdp2_grad_scaler compile_regions_fsdp2 "
        "enable_fsdp_ram_efficient_loading disable_fsdp_ram_efficient_loading "
        "model_has_dtensor",
        _FP8: "AORecipeKwargs FP8RecipeKwargs MSAMPRecipeKwargs TERecipeKwargs ao "
        "apply_fp8_autowrap check_cuda_fp8_capability contextual_fp8_autocast convert_model "
        "convert_model_to_fp8_ao filter_first_and_last_linear_layers has_ao_layers "
        "has_transformer_engine_layers transformer_engine torchao_required",
        _MEGATRON: "AbstractTrainStep BertTrainStep GPTTrainStep T5TrainStep "
        "MegatronLMDummyDataLoader MegatronLMDummyScheduler MegatronLMPlugin "
        "add_model_config_to_megatron_parser avg_losses_across_data_parallel_group "
        "initialize_tensors megatron_lm",
        _PARALLEL: "ParallelismConfig parallelism_config TorchContextParallelConfig "
        "TorchTensorParallelConfig TorchTensorParallelPlugin get_model_tp_size",
        _DYNAMO: "DynamoBackend TorchDynamoPlugin compile_regions has_compiled_regions",
        _QUANT: "BnbQuantizationConfig bnb has_4bit_bnb_layers load_and_quantize_model",
        _CLOUD: "ComputeEnvironment SageMakerDistributedType prepare_sagemager_args_inputs",
        _TPU: "install_xla prepare_tpu torch_xla",
        _LAUNCH: "PrepareForLaunch TORCH_LAUNCH_PARAMS launch prepare_multi_gpu_env "
        "prepare_simple_launcher_cmd_env check_cuda_p2p_ib_support check_os_kernel "
        "get_cpu_distributed_information get_gpu_info set_numa_affinity "
        "convert_dict_to_env_variables get_current_device_type is_port_in_use",
        _INNER: "CannotPadNestedTensorWarning TORCH_DISTRIBUTED_OPERATION_TYPES "
        "TensorInformation copy_tensor_to_devices get_data_structure get_grad_scaler "
        "get_mixed_precision_context_manager is_tensor_information pad_input_tensors "
        "clean_state_dict_for_safetensors slice_tensors find_device "
        "are_libraries_initialized get_pretty_name",
        _FILES: "OPTIMIZER_NAME RNG_STATE_NAME SAMPLER_NAME SCALER_NAME SCHEDULER_NAME "
        "checkpointing",
        _TORCH: "MITA_PROFILING_AVAILABLE_PYTORCH_VERSION PROFILE_PATTERN_NAME "
        "XPU_PROFILING_AVAILABLE_PYTORCH_VERSION is_torch_version versions compare_versions "
        "is_weights_only_available",
    }.items()
    for name in names.split()
}

#: Members of Accelerate's ``Accelerator`` that are not here.
MEMBERS: Mapping[str, str] = {
    "lomo_backward": "LOMO optimizers are not used; call backward(loss)",
    "maybe_context_parallel": _PARALLEL,
    "deepspeed_ulysses_dl_adapter": _DEEPSPEED,
}


def explain(owner: str, name: str, reason: str) -> str:
    """Give the text of the error for a name that is not here."""
    because, _, instead = reason.partition("; ")
    return f"{owner} has no {name}: {because}" + (f"; {instead}" if instead else "")


def missing(module: str, name: str) -> Exception:
    """Give the error for a name that ``module`` does not have; for its ``__getattr__``.

    Returns
    -------
    Exception
        An AttributeError, with the reason if the name is one of Accelerate's. An import statement
        would hide the text of an AttributeError, so it gets an ImportError.
    """
    if name not in NAMES:
        return AttributeError(f"module {module!r} has no attribute {name!r}")
    text = explain(module, name, NAMES[name])
    frame = sys._getframe(2)  # whoever asks the module's __getattr__
    if frame.f_code.co_code[frame.f_lasti] == _IMPORT_FROM:
        return ImportError(text, name=name)
    return AttributeError(text)


def _opcode_of_import_from() -> int:
    import opcode

    return opcode.opmap["IMPORT_FROM"]


_IMPORT_FROM = _opcode_of_import_from()
