"""What it is for: stitched masks, honest figures, and a page that shows them."""

from embedcache.results.evaluate import evaluate
from embedcache.results.evaluation import Evaluation
from embedcache.results.export import export
from embedcache.results.predict import Prediction, predict
from embedcache.results.report import report
from embedcache.results.run import Run, train
from embedcache.results.submission import submit

__all__ = ["Evaluation", "Prediction", "Run", "evaluate", "export", "predict", "report", "submit", "train"]
