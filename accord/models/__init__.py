"""One base, many roles: loading, tokens, adapters, heads, the trunk, files, and the proof that a model is fit."""

from accord.models.adapters import LoraSettings
from accord.models.base import Base
from accord.models.doctor import CheckResult, require_healthy, run_doctor
from accord.models.loading import load_base
from accord.models.tokenizer import ChatTokenizer

__all__ = ["Base", "ChatTokenizer", "CheckResult", "LoraSettings", "load_base", "require_healthy", "run_doctor"]
