"""Predict which customers of a telecom provider leave. The data has 5,000 customers, of whom 14 % left."""

from typing import TYPE_CHECKING, Annotated

import pandas as pd
import pandera.pandas as pa

from ml_platform.model_spec import Comparison, Gate, InRange, ModelSpec, Retraining

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

Utc = Annotated[pd.DatetimeTZDtype, "us", "UTC"]
CATEGORIES = ["state", "area_code", "international_plan", "voice_mail_plan"]
YES_NO = ["yes", "no"]


class Customers(pa.DataFrameModel):
    """The contract for the warehouse's export of customers."""

    customer: int = pa.Field(ge=1)
    observed_at: Utc
    state: str = pa.Field(str_matches=r"^[A-Z]{2}$")
    account_length: int = pa.Field(ge=0, le=1_000)
    area_code: str = pa.Field(str_matches=r"^area_code_[0-9]{3}$")
    international_plan: str = pa.Field(isin=YES_NO)
    voice_mail_plan: str = pa.Field(isin=YES_NO)
    number_vmail_messages: int = pa.Field(ge=0, le=1_000)
    total_day_minutes: float = pa.Field(ge=0, le=1_440)
    total_day_calls: int = pa.Field(ge=0, le=1_000)
    total_day_charge: float = pa.Field(ge=0, le=1_000)
    total_eve_minutes: float = pa.Field(ge=0, le=1_440)
    total_eve_calls: int = pa.Field(ge=0, le=1_000)
    total_eve_charge: float = pa.Field(ge=0, le=1_000)
    total_night_minutes: float = pa.Field(ge=0, le=1_440)
    total_night_calls: int = pa.Field(ge=0, le=1_000)
    total_night_charge: float = pa.Field(ge=0, le=1_000)
    total_intl_minutes: float = pa.Field(ge=0, le=1_440)
    total_intl_calls: int = pa.Field(ge=0, le=1_000)
    total_intl_charge: float = pa.Field(ge=0, le=1_000)
    number_customer_service_calls: int = pa.Field(ge=0, le=100)
    churn: str = pa.Field(isin=YES_NO)

    class Config:
        """Refuse unknown columns, and do not coerce values."""

        strict = True
        coerce = False


def pipeline() -> "Pipeline":
    """Return boosted trees whose decision threshold is chosen by cross-validation on the training rows."""
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.model_selection import TunedThresholdClassifierCV
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import OrdinalEncoder

    encode = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    preprocess = ColumnTransformer([("categories", encode, CATEGORIES)], remainder="passthrough")
    trees = HistGradientBoostingClassifier(random_state=0)
    classify = TunedThresholdClassifierCV(trees, scoring="f1", cv=5, random_state=0)
    return Pipeline([("preprocess", preprocess), ("classify", classify)])


def calls_for_help(customers: pd.DataFrame) -> "pd.Series[float]":
    """Predict without a model: a customer who called the service four times or more is about to leave."""
    return (customers["number_customer_service_calls"] >= 4).astype("float64")


churn = ModelSpec(
    name="churn",
    description="Which telecom customers are about to leave.",
    owners=("team:retention",),
    contract=Customers,
    pipeline=pipeline,
    entity="customer",
    event_time="observed_at",
    label="churn",
    positive="yes",
    gates=(
        Gate(metric="auc_roc", at_least=0.80),
        Gate(metric="f1_score", at_least=0.70),
        Gate(metric="inference_time_ms", at_most=100),
        Gate(metric="model_size_mb", at_most=500),
        # A good average must not hide a bad slice: customers with an international plan leave four times as often.
        Gate(metric="auc_roc", at_least=0.70, slices=("international_plan",)),
    ),
    slices=("international_plan", "voice_mail_plan", InRange(column="account_length", below=100)),
    # An equal successor is accepted: a holdout of a fifth of the customers resolves two points of AUC.
    comparison=Comparison(metric="auc_roc", margin=0.02),
    baseline=calls_for_help,
    retraining=Retraining(schedule="0 2 * * 1", min_new_rows=100),
    approval="automatic",
    # The features in which drift appears first. The customer's place of residence is not logged.
    logged_features=(
        "account_length",
        "international_plan",
        "voice_mail_plan",
        "total_day_minutes",
        "total_eve_minutes",
        "total_night_minutes",
        "total_intl_minutes",
        "number_customer_service_calls",
    ),
)
