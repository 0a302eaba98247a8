"""What it is for: stitched masks, honest figures, and a page that shows them."""

from embedcache.results.evaluate import Evaluation, evaluate
from embedcache.results.predict import Prediction, predict
from embedcache.results.report import report

__all__ = ["Evaluation", "Prediction", "evaluate", "predict", "report"]
