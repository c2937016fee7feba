"""Results become what people and machines read: the terminal, Markdown, one HTML file, JSON Schemas.

In comes what the pipeline or a study found, out go tables, figures and notes in one form (:mod:`.content`) that three
writers show. It may know everything but the command line.
"""
