"""Stage two: committed embeddings, labels and prompts become a better decoder."""

from embedcache.train.checkpoint import Checkpoint, check_space
from embedcache.train.options import TrainOptions
from embedcache.train.questions.dataset import Batch, EmbeddingDataset, TrainingItem, collate
from embedcache.train.questions.prompts import prompt_source
from embedcache.train.run import Run
from embedcache.train.trainer import train
from embedcache.train.truth.labels import Labels, open_labels
from embedcache.train.truth.split import Split, make_split

__all__ = [
    "Batch",
    "Checkpoint",
    "EmbeddingDataset",
    "Labels",
    "Run",
    "Split",
    "TrainOptions",
    "TrainingItem",
    "check_space",
    "collate",
    "make_split",
    "open_labels",
    "prompt_source",
    "train",
]
