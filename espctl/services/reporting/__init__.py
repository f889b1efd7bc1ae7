"""Results beside the published ones: tables, measures, figures, the page, and the runs behind them."""
