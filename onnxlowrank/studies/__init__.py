"""What users ask besides optimising: compare, profile, analyze, sweep; one file and one public function each.

In come models and options, out goes a dataclass that says everything and turns into JSON. A study may know the pipeline
and all below it, but not how results are shown.
"""
