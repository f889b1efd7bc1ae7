"""The ledger of runs, experts and evaluations: one SQLite file.

The run folders are the truth; what is here makes them quick to list, filter and compare, and can be rebuilt from them.
Nothing outside this package knows SQLAlchemy's rows: functions return the frozen records of `espctl.store.records`.
"""
