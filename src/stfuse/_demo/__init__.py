"""The tour behind ``python -m stfuse demo``: steps, figures and the report."""
