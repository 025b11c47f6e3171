"""The fixtures of this folder."""

from tests.cli.command_line import arc_halo, bert_folder, stored

__all__ = ["arc_halo", "bert_folder", "stored"]
