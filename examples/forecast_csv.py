"""Forecast a column of your own CSV file past its end: python examples/forecast_csv.py load.csv date MW 48"""

import sys

import pandas

from flambeau.training import ConsoleProgress
from flambeau.training.estimators import Forecaster

file, date, target, horizon = sys.argv[1:]
frame = pandas.read_csv(file, parse_dates=[date])
forecaster = Forecaster().fit(frame, target, date=date, progress=ConsoleProgress())
print(forecaster.predict(int(horizon)).to_csv(index=False), end="")
