"""Converts fitted estimators of scikit-learn, XGBoost and LightGBM to functions of plain TensorFlow operations.

`ciml.training.conversion.functions.convert` is the entry. A model's graph then computes what the library computes, so
that a SavedModel needs neither the library nor a pickle. All operations are on the model server's list of allowed ones.
"""
