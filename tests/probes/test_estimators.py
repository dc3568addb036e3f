from sklearn.utils.estimator_checks import parametrize_with_checks

from sonde.probes.estimators import LogisticProbe, MeanDifferenceProbe, RidgeProbe


@parametrize_with_checks([RidgeProbe(), LogisticProbe(), MeanDifferenceProbe()])
def test_scikit_learns_own_checks_pass(estimator, check):
    check(estimator)
