"""The schema of accord.toml (`schema`) and how it is read (`load`)."""

from accord.config.schema import Config

__all__ = ["Config"]
