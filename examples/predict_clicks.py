"""Learn from a CSV or Parquet file with a column of clicks, score another, and say which fields matter together:

python examples/predict_clicks.py train.csv clicked new.csv scored.csv
"""

import sys

import pandas

from flambeau.training.estimators import AutoIntClassifier

train, target, new, scored = sys.argv[1:]
read = [pandas.read_parquet if name.endswith(".parquet") else pandas.read_csv for name in (train, new)]
history, rows = read[0](train), read[1](new)
model = AutoIntClassifier(mlp=(128, 128), random_state=0)
model.fit(history.drop(columns=target), history[target])
rows.assign(probability=model.predict_proba(rows)[:, 1]).to_csv(scored, index=False)
table = model.explain(rows)
pairs = table.attrs["pair_importance"].stack()
pairs = pairs[[first < second for first, second in pairs.index]]
print(f"held out: {model.best_}\n{pairs.nlargest(5).to_string()}\n{table.attrs['note']}")
