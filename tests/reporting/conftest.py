from tests.synthetic import make_results, make_study, study

__all__ = ["make_results", "make_study", "study"]
