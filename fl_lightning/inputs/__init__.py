"""What comes from outside is read here, and nowhere else: bounded, and refused in one line."""

from fl_lightning.inputs._archives import bounded, gunzip
from fl_lightning.inputs._strict_json import strict_json
from fl_lightning.inputs._yaml import read_yaml_file, read_yaml_text, write_yaml
from fl_lightning.inputs._zip import FileSum, check_listed, file_sum, read_member, unpack_member, zip_members

__all__ = [
    "FileSum",
    "bounded",
    "check_listed",
    "file_sum",
    "gunzip",
    "read_member",
    "read_yaml_file",
    "read_yaml_text",
    "strict_json",
    "unpack_member",
    "write_yaml",
    "zip_members",
]
