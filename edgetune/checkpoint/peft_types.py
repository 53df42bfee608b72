"""What PEFT's adapter types are to a merge: merged, or refused and why. Standard library only.

One row a `PeftType` of PEFT 0.21; tests hold the rows against PEFT's own list and each row's fields
against its config class, so that a new type or field cannot be missed. A type is merged by PEFT's
own layers (`edgetune.merge`); it is refused where PEFT has no merge for it, because what it learned
is no change of the base's weights.
"""

from __future__ import annotations

from dataclasses import dataclass

# In every PEFT config.
COMMON_FIELDS = frozenset({
    "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version",
    "revision", "task_type",
})  # fmt: skip
_MODULES = "target_modules modules_to_save"
_LAYERS = f"{_MODULES} layers_to_transform layers_pattern"
_LORA = (
    f"{_LAYERS} alora_invocation_tokens alpha_pattern arrow_config bias corda_config "
    "ensure_weight_tying eva_config exclude_modules fan_in_fan_out init_lora_weights kasa_config "
    "layer_replication loftq_config lora_alpha lora_bias lora_dropout lora_ga_config "
    "megatron_config megatron_core monteclora_config qalora_group_size r rank_pattern "
    "runtime_config target_parameters trainable_token_indices use_bdlora use_dora use_qalora "
    "use_rslora velora_config"
)
_VIRTUAL_TOKENS = "it learned virtual tokens to put before the input, no change of weights"
_RUN_TIME = "train LoRA instead, or serve it with PEFT"


@dataclass(frozen=True)
class AdapterType:
    """A PEFT type: how people write it, its config's fields beside the common ones, and why it is
    refused (None: it is merged)."""

    label: str
    fields: frozenset[str] = frozenset()
    refusal: str | None = None
    hint: str = _RUN_TIME


def _merged(label: str, fields: str) -> AdapterType:
    return AdapterType(label, frozenset(fields.split()))


def _refused(label: str, why: str, hint: str = _RUN_TIME) -> AdapterType:
    return AdapterType(label, refusal=why, hint=hint)


TYPES: dict[str, AdapterType] = {
    "LORA": _merged("LoRA", _LORA),
    "ADALORA": _merged(
        "AdaLoRA",
        f"{_LORA} beta1 beta2 deltaT init_r orth_reg_weight target_r tfinal tinit total_step",
    ),
    "BEFT": _merged("BEFT", f"{_MODULES} init_weights"),
    "BOFT": _merged(
        "BOFT",
        f"{_LAYERS} bias boft_block_num boft_block_size boft_dropout boft_n_butterfly_factor "
        "exclude_modules fan_in_fan_out init_weights",
    ),
    "C3A": _merged("C3A", f"{_LAYERS} bias block_size block_size_pattern init_weights"),
    "DEFT": _merged(
        "DEFT",
        f"{_LAYERS} alpha bias decomposition_method deft_dropout exclude_modules fan_in_fan_out "
        "init_scale init_weights para r",
    ),
    "DELORA": _merged(
        "DeLoRA",
        f"{_LAYERS} bias delora_lambda exclude_modules init_weights lambda_pattern module_dropout "
        "r rank_pattern",
    ),
    "FOURIERFT": _merged(
        "FourierFT",
        f"{_LAYERS} bias exclude_modules fan_in_fan_out init_weights n_frequency "
        "n_frequency_pattern random_loc_seed scaling",
    ),
    "FROD": _merged(
        "FRoD",
        f"{_LAYERS} bias fan_in_fan_out frod_dropout init_weights progressbar projection_prng_key "
        "regularization_alpha runtime_offload_base_weight save_projection sparse_rate",
    ),
    "GLORA": _merged("GLoRA", f"{_MODULES} bias config_A_B config_C config_D_E init_weights r"),
    "GRALORA": _merged(
        "GraLoRA",
        f"{_LAYERS} alpha bias fan_in_fan_out gralora_dropout gralora_k hybrid_r init_weights r",
    ),
    "HIRA": _merged(
        "HiRA",
        f"{_LAYERS} exclude_modules fan_in_fan_out hira_dropout init_weights r rank_pattern",
    ),
    "HRA": _merged("HRA", f"{_LAYERS} apply_GS bias exclude_modules init_weights r"),
    "IA3": _merged(
        "IA3", f"{_MODULES} exclude_modules fan_in_fan_out feedforward_modules init_ia3_weights"
    ),
    "LN_TUNING": _merged("LN tuning", f"{_MODULES} exclude_modules"),
    "LOHA": _merged(
        "LoHa",
        f"{_LAYERS} alpha alpha_pattern exclude_modules init_weights module_dropout r "
        "rank_dropout rank_pattern use_effective_conv2d",
    ),
    "LOKR": _merged(
        "LoKr",
        f"{_LAYERS} alpha alpha_pattern decompose_both decompose_factor exclude_modules "
        "init_weights module_dropout r rank_dropout rank_dropout_scale rank_pattern "
        "use_effective_conv2d",
    ),
    "MISS": _merged("MiSS", f"{_LAYERS} bias exclude_modules init_weights mini_r miss_dropout r"),
    "OFT": _merged(
        "OFT",
        f"{_LAYERS} bias block_share coft eps exclude_modules fan_in_fan_out init_weights "
        "module_dropout num_cayley_neumann_terms oft_block_size r use_cayley_neumann",
    ),
    "OSF": _merged("OSF", f"{_MODULES} effective_rank init_weights rank_pattern target_svd_config"),
    "PEANUT": _merged("PEANuT", f"{_LAYERS} act_fn depth exclude_modules init_weights r scaling"),
    "PSOFT": _merged(
        "PSOFT",
        f"{_LAYERS} ab_svd_init cayley_neumann_eps exclude_modules fan_in_fan_out init_weights "
        "num_cayley_neumann_terms psoft_alpha psoft_dropout psoft_mag_a psoft_mag_b psoft_orth "
        "psoft_svd psoft_svd_lowrank_niter r random_seed use_cayley_neumann",
    ),
    "PVERA": _merged(
        "PVeRA",
        f"{_LAYERS} bias d_initial fan_in_fan_out generator_seed init_weights "
        "projection_prng_key pvera_dropout r sample_at_inference save_projection",
    ),
    "RANDLORA": _merged(
        "RandLoRA",
        f"{_LAYERS} bias fan_in_fan_out init_weights projection_prng_key r randlora_alpha "
        "randlora_dropout save_projection sparse very_sparse",
    ),
    "ROAD": _merged("RoAd", f"{_MODULES} group_size init_weights variant"),
    "SHIRA": _merged("SHiRA", f"{_MODULES} fan_in_fan_out init_weights mask_type r random_seed"),
    "SUPERTUNING": _merged(
        "Supertuning",
        f"{_MODULES} init_weights lora_alpha lora_dropout r save_precomputed_indices select_top "
        "sparsity",
    ),
    "TINYLORA": _merged(
        "TinyLoRA",
        f"{_LAYERS} bias fan_in_fan_out init_v_bound init_weights projection_seed r "
        "save_projection tinylora_dropout u weight_tying",
    ),
    "TRAINABLE_TOKENS": _merged("trainable tokens", "target_modules init_weights token_indices"),
    "UNILORA": _merged(
        "Uni-LoRA",
        f"{_LAYERS} bias fan_in_fan_out init_theta_d_bound init_weights proj_seed r save_indices "
        "theta_d_length unilora_dropout",
    ),
    "VBLORA": _merged(
        "VB-LoRA",
        f"{_LAYERS} bias exclude_modules fan_in_fan_out init_logits_std init_vector_bank_bound "
        "num_vectors r save_only_topk_weights topk vblora_dropout vector_length",
    ),
    "VERA": _merged(
        "VeRA",
        f"{_LAYERS} bias d_initial fan_in_fan_out init_weights projection_prng_key r "
        "save_projection vera_dropout",
    ),
    "WAVEFT": _merged(
        "WaveFT",
        f"{_LAYERS} bias exclude_modules fan_in_fan_out init_weights n_frequency "
        "n_frequency_pattern proportional_parameters random_loc_seed scaling use_idwt "
        "wavelet_family",
    ),
    "ADAMSS": _refused(
        "AdaMSS",
        "PEFT clusters the base's weights with scikit-learn for it, which is no part of a build",
        "merge it with PEFT where you trained it, and build from the merged model",
    ),
    "ADAPTION_PROMPT": _refused(
        "adaption prompt", "it learned a prompt that attention adds at run time, no weights"
    ),
    "CARTRIDGE": _refused("cartridge", "it learned keys and values of a cache, no weights"),
    "CPT": _refused("CPT", _VIRTUAL_TOKENS),
    "LILY": _refused("Lily", "a router mixes its parts by the input; no merged weight can"),
    "MULTITASK_PROMPT_TUNING": _refused("multitask prompt tuning", _VIRTUAL_TOKENS),
    "POLY": _refused("Poly", "a router mixes its skills by the task; no merged weight can"),
    "PREFIX_TUNING": _refused(
        "prefix tuning", "it learned keys and values that go before every input, no weights"
    ),
    "PROMPT_TUNING": _refused("prompt tuning", _VIRTUAL_TOKENS),
    "P_TUNING": _refused("P-tuning", _VIRTUAL_TOKENS),
    "SHADOW": _refused(
        "ShadowPEFT", "a second model runs beside the layers; no merged weight can stand for it"
    ),
    "XLORA": _refused("X-LoRA", "it mixes its LoRA adapters by the input; no merged weight can"),
}


def label_of(peft_type: str) -> str:
    """How people write a PEFT type; one that PEFT 0.21 does not have stays as it is."""
    known = TYPES.get(peft_type)
    return known.label if known else peft_type


def merged_types() -> tuple[str, ...]:
    """The types that are merged, as people write them."""
    return tuple(row.label for row in TYPES.values() if row.refusal is None)
