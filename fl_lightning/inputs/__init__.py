"""What comes from outside is read here, and nowhere else: bounded, and refused in one line."""

from fl_lightning.inputs._archives import bounded, gunzip
from fl_lightning.inputs._strict_json import strict_json
from fl_lightning.inputs._yaml import read_yaml_file, read_yaml_text, write_yaml

__all__ = ["bounded", "gunzip", "read_yaml_file", "read_yaml_text", "strict_json", "write_yaml"]
