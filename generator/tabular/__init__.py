"""Networks for tables never seen: from the rows of a table to a classifier, in one pass.

model.TabularGenerator   rows -> rows' tokens -> hidden units -> readout: an MLP
training                 it learns from `zoo.tasks.families.tabular_prior` alone
classifier               the same as an estimator of scikit-learn
"""
