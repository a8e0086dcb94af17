"""accord.toml: its schema (`schema`), how it is read (`load`, `locate`) and how it is written (`document`)."""

from accord.config.load import FILE_NAME, InvalidSettings, load_config
from accord.config.schema import Config

__all__ = ["FILE_NAME", "Config", "InvalidSettings", "load_config"]
