"""Sounds: one reader, and data sets as people have them, for training, evaluation and prediction."""

from .audioset import PackedSounds, open_listed, read_ontology
from .clips import NOTHING, Clip, Clips, SoundSet
from .files import FileSounds, FolderSounds, open_folder
from .hub import HubSounds
from .reading import EXTENSIONS, fitted, read_sound, resampled, seconds_of

__all__ = [
    "EXTENSIONS",
    "NOTHING",
    "Clip",
    "Clips",
    "FileSounds",
    "FolderSounds",
    "HubSounds",
    "PackedSounds",
    "SoundSet",
    "fitted",
    "open_folder",
    "open_listed",
    "read_ontology",
    "read_sound",
    "resampled",
    "seconds_of",
]
