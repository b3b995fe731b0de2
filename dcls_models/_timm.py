"""Every private name of timm that this project uses, so that a release of timm breaks one file."""

from timm.models._builder import resolve_pretrained_cfg
from timm.models._helpers import clean_state_dict
from timm.models._hub import (
    download_cached_file,
    download_from_hf,
    load_model_config_from_hf,
    load_model_config_from_path,
    save_config_for_hf,
    save_for_hf,
)
from timm.models._input import get_model_args

__all__ = [
    "clean_state_dict",
    "download_cached_file",
    "download_from_hf",
    "get_model_args",
    "load_model_config_from_hf",
    "load_model_config_from_path",
    "resolve_pretrained_cfg",
    "save_config_for_hf",
    "save_for_hf",
]
