//! Adapted statistics, Gaussian heads and collapse against the golden cases of AdaGauss.

use std::collections::BTreeMap;

use merganser_linalg::gemm;
use merganser_model::mlp::Dense;
use merganser_model::{Mlp, Pointwise};
use merganser_testkit::golden::Tensor;
use merganser_upkeep::Matrix;
use merganser_upkeep::drift::{Affine, Drift, Map, affine, nearest_prototypes, orthogonal};
use merganser_upkeep::heads::{Gaussian, GaussianOptions, Pool};
use merganser_upkeep::stats::collapse::{collapse, cutoff, gradient, pivots};
use merganser_upkeep::stats::covariance::{correlation, factor, shrunk, with_diagonal};
use merganser_upkeep::stats::{Adapter, SampleOptions, Sampled, Stats, Strategy, draw_features};
use serde_json::Value;

use crate::heads::{Tensors, case, close, matrix, whole};

fn tolerance(params: &Value) -> (f64, f64) {
    let of = |key: &str| params["tolerance"][key].as_f64().unwrap();
    (of("rtol"), of("atol"))
}

/// The squares of a tensor of shape (C, d, d).
fn squares(tensor: &Tensor) -> Vec<Matrix> {
    let dim = tensor.shape[2];
    let each = tensor.values.chunks(dim * dim);
    each.map(|cov| Matrix::new(dim, dim, cov.to_vec()).unwrap())
        .collect()
}

fn flat(covs: &[Matrix]) -> Vec<f64> {
    covs.iter()
        .flat_map(|cov| cov.as_slice().to_vec())
        .collect()
}

fn given(inputs: &Tensors) -> Stats {
    let means = matrix(&inputs["means"]);
    Stats {
        classes: (0..means.rows()).collect(),
        counts: vec![50; means.rows()],
        means,
        covs: Some(squares(&inputs["covs"])),
        gram: None,
    }
}

fn dense(weight: &Tensor, bias: &Tensor) -> Dense {
    Dense {
        name: "layer".into(),
        inputs: weight.shape[1],
        outputs: weight.shape[0],
        weight: weight.values.clone(),
        bias: Some(bias.values.clone()),
    }
}

/// The adapter of a case: linear, or of two layers with GELU between.
fn adapter(inputs: &Tensors) -> Adapter {
    let mlp = if inputs.contains_key("A") {
        let layer = dense(&inputs["A"], &inputs["b"]);
        Mlp::new(vec![layer], vec![Pointwise::Identity])
    } else {
        let first = dense(&inputs["W1"], &inputs["b1"]);
        let second = dense(&inputs["W2"], &inputs["b2"]);
        Mlp::new(
            vec![first, second],
            vec![Pointwise::Gelu, Pointwise::Identity],
        )
    };
    Adapter::new(&mlp.unwrap()).unwrap()
}

/// Statistics taken through the adapter of a case with its standard normal numbers.
fn sampled(inputs: &Tensors, params: &Value) -> Sampled {
    let params = &params["params"];
    let normals = &inputs["std_normals"];
    let size = normals.shape[1] * normals.shape[2];
    let options = SampleOptions {
        strategy: match params["strategy"].as_str().unwrap() {
            "full" => Strategy::Full,
            "diag" => Strategy::Diagonal,
            "mean" => Strategy::Mean,
            other => panic!("{other}"),
        },
        samples: normals.shape[1],
        seed: 0,
        shrink: params["shrink"].as_f64().unwrap(),
    };
    assert_eq!(params["n_samples"], normals.shape[1]);
    let draw = |row: usize| -> Box<dyn FnMut() -> f64> {
        let mut own = normals.values[row * size..][..size].iter();
        Box::new(move || *own.next().unwrap())
    };
    given(inputs)
        .adapt_with(&adapter(inputs), &options, &draw)
        .unwrap()
}

#[test]
fn statistics_follow_networks_as_in_the_code_of_the_authors() {
    for name in [
        "linear_full_c3_s6",
        "mlp_full_c3_s8",
        "mlp_full_shrink05",
        "mlp_diag",
        "mlp_mean_only",
    ] {
        let (inputs, expected, params) = case("adagauss", name);
        let tolerance = tolerance(&params);
        let found = sampled(&inputs, &params);
        assert!(found.notes.is_empty(), "{name}: {:?}", found.notes);
        close(
            name,
            found.stats.means.as_slice(),
            &expected["new_means"].values,
            tolerance,
        );
        let covs = flat(&found.stats.covs.unwrap());
        close(name, &covs, &expected["new_covs"].values, tolerance);
        if let Some(map) = adapter(&inputs).as_affine() {
            let exact = given(&inputs).adapt_affine(&map).unwrap();
            close(
                name,
                exact.means.as_slice(),
                &expected["analytic_means"].values,
                tolerance,
            );
            close(
                name,
                &flat(&exact.covs.unwrap()),
                &expected["analytic_covs"].values,
                tolerance,
            );
        }
    }
}

#[test]
fn features_are_drawn_by_the_lower_factor() {
    let (inputs, expected, params) = case("adagauss", "pseudo_feature_sampling");
    let stats = given(&inputs);
    let normals = &inputs["std_normals"];
    let (count, dim) = (normals.shape[1], normals.shape[2]);
    let mut all = Vec::new();
    for (class, cov) in stats.covs.as_ref().unwrap().iter().enumerate() {
        let (lower, added) = factor(cov, || "a class".into()).unwrap();
        assert_eq!(added, 0.0);
        let own = normals.values[class * count * dim..][..count * dim].to_vec();
        let own = Matrix::new(count, dim, own).unwrap();
        all.extend(draw_features(stats.means.row(class), &lower, &own).into_vec());
    }
    close(
        "samples",
        &all,
        &expected["samples"].values,
        tolerance(&params),
    );
}

#[test]
fn covariances_are_shrunk_and_normalised() {
    let (inputs, expected, params) = case("adagauss", "shrink_and_norm");
    let covs = squares(&inputs["covs"]);
    let check = |key: &str, change: &dyn Fn(Matrix) -> Matrix| {
        let found: Vec<Matrix> = covs.iter().cloned().map(change).collect();
        close(
            key,
            &flat(&found),
            &expected[key].values,
            tolerance(&params),
        );
    };
    check("shrink_1_1", &|cov| shrunk(cov, 1.0, 1.0));
    check("shrink_3_0", &|cov| shrunk(cov, 3.0, 0.0));
    check("shrink_eps", &|cov| with_diagonal(cov, 0.01));
    check("norm", &correlation);
}

/// The unbiased covariance of rows.
fn covariance(rows: &Matrix) -> Matrix {
    let n = rows.rows() as f64;
    let mean: Vec<f64> = (0..rows.cols())
        .map(|j| (0..rows.rows()).map(|i| rows.get(i, j)).sum::<f64>() / n)
        .collect();
    let centred = Matrix::from_fn(rows.rows(), rows.cols(), |i, j| rows.get(i, j) - mean[j]);
    let mut cov = gemm::mul_tn(&centred, &centred);
    cov.scale(1.0 / (n - 1.0));
    cov
}

#[test]
fn collapse_is_scored_as_the_loss_and_reported_where_it_fails() {
    let (inputs, expected, params) = case("adagauss", "anticollapse_b64_s8");
    let beta = params["params"]["beta"].as_f64().unwrap();
    let cov = covariance(&matrix(&inputs["features"]));
    let found = collapse(&cov, beta).unwrap();
    let tolerance = tolerance(&params);
    close("loss", &[found.score], &expected["loss"].values, tolerance);
    let pivots = pivots(&cov, cutoff(&cov));
    close("pivots", &pivots, &expected["chol_diag"].values, tolerance);
    let det = pivots.iter().map(|a| a * a).product();
    close("det", &[det], &expected["det"].values, tolerance);
    assert_eq!((found.collapsed, found.rank), (0, 8));
    let slopes = gradient(&matrix(&inputs["features"]), beta).unwrap();
    close(
        "grad",
        slopes.as_slice(),
        &expected["grad"].values,
        tolerance,
    );

    let (inputs, expected, _) = case("adagauss", "anticollapse_rank_deficient");
    assert_eq!(expected["failed"].values, [1.0]);
    let found = collapse(&covariance(&matrix(&inputs["features"])), beta).unwrap();
    assert_eq!((found.collapsed, found.rank, found.condition), (5, 3, None));
    assert!(found.score < 0.0 && found.score > -beta);
    assert!(gradient(&matrix(&inputs["features"]), beta).is_err());
}

#[test]
fn an_adapter_is_judged_by_the_mean_over_elements() {
    let (inputs, expected, params) = case("adagauss", "projected_distillation");
    let (new, old) = (
        matrix(&inputs["features_new"]),
        matrix(&inputs["features_old"]),
    );
    let loss = adapter(&inputs).mean_square_error(&new, &old).unwrap();
    // The projector of training goes from the new features to the old.
    close(
        "loss",
        &[loss],
        &expected["kd_loss"].values,
        tolerance(&params),
    );
}

fn answers(scores: &Matrix) -> Vec<f64> {
    let best =
        |row: &[f64]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]).then(b.cmp(&a)));
    (0..scores.rows())
        .map(|i| best(scores.row(i)).unwrap() as f64)
        .collect()
}

#[test]
fn gaussian_heads_are_those_of_the_authors_and_of_the_textbook() {
    for name in ["bayes_plain", "bayes_normalized"] {
        let (inputs, expected, params) = case("adagauss", name);
        let tolerance = tolerance(&params);
        let normalize = params["params"]["normalize"].as_bool().unwrap();
        let shrink = params["params"]["shrink"].as_f64().unwrap();
        let pool = || Pool::new(vec![given(&inputs)], None).unwrap();
        let head = |options: &GaussianOptions| -> Gaussian { pool().gaussian(options).unwrap().0 };
        let features = matrix(&inputs["features"]);

        let bayes = head(&GaussianOptions::adagauss(shrink, normalize));
        let mut distances = bayes.scores(&features);
        assert_eq!(answers(&distances), expected["pred_bayes"].values, "{name}");
        distances.scale(-2.0);
        close(
            name,
            distances.as_slice(),
            &expected["mahalanobis"].values,
            tolerance,
        );
        for (inverse, cov) in bayes.factors.iter().zip(squares(&expected["cov_used"])) {
            let whitened = gemm::mul_nt(&gemm::mul(inverse, &cov), inverse);
            close(
                name,
                whitened.as_slice(),
                Matrix::identity(cov.rows()).as_slice(),
                tolerance,
            );
        }

        // By means alone, as they are.
        let nearest = nearest_prototypes(&matrix(&inputs["means"]), &features);
        let nearest: Vec<f64> = nearest.iter().map(|&class| class as f64).collect();
        assert_eq!(nearest, expected["pred_nmc"].values, "{name}");

        // The textbook's, with the covariances as they are.
        let full = head(&GaussianOptions::likelihood(0.0, 0.0));
        let mut scores = full.scores(&features);
        assert_eq!(
            answers(&scores),
            expected["pred_gauss_full"].values,
            "{name}"
        );
        let (classes, dim) = full.means.shape();
        let constant = (classes as f64).ln() - 0.5 * dim as f64 * std::f64::consts::TAU.ln();
        scores
            .as_mut_slice()
            .iter_mut()
            .for_each(|x| *x += constant);
        close(
            name,
            scores.as_slice(),
            &expected["loglik_full"].values,
            tolerance,
        );

        let labels = whole(&inputs["labels"]);
        let right = |key: &str| {
            let pairs = whole(&expected[key]).into_iter().zip(&labels);
            pairs.filter(|(a, b)| a == *b).count()
        };
        assert!(right("pred_gauss_full") >= right("pred_bayes"), "{name}");
    }
}

#[test]
fn statistics_move_by_closed_form() {
    let (inputs, expected, params) = case("adagauss", "affine_adapter_closed_form");
    let tolerance = tolerance(&params);
    let (old, new) = (matrix(&inputs["feats_old"]), matrix(&inputs["feats_new"]));
    let stats = given(&inputs);
    let drift = |map| Drift {
        from: "old".into(),
        to: "new".into(),
        unit: false,
        anchors: old.rows(),
        map,
        measured: BTreeMap::new(),
    };
    let check = |map: Map, means: &str, covs: &str| {
        let moved = stats.adapt(&drift(map)).unwrap();
        close(
            means,
            moved.means.as_slice(),
            &expected[means].values,
            tolerance,
        );
        close(
            covs,
            &flat(&moved.covs.unwrap()),
            &expected[covs].values,
            tolerance,
        );
    };
    // The case adds r |A|² with r as it is; a ridge ρ here means r = ρ tr(Σ (o − ō)(o − ō)ᵀ) / d.
    let (n, dim) = (old.rows() as f64, old.cols() as f64);
    let cov = covariance(&old);
    let trace: f64 = (0..old.cols()).map(|i| (n - 1.0) * cov.get(i, i)).sum();
    let ridge = params["params"]["ridge"].as_f64().unwrap() * dim / trace;
    let fitted: Affine = affine(&old, &new, ridge).unwrap();
    close(
        "A",
        fitted.weight.as_slice(),
        &expected["A"].values,
        tolerance,
    );
    close("b", &fitted.bias, &expected["b"].values, tolerance);
    let mut error = fitted.apply(&old);
    error.add_scaled(-1.0, &new);
    let mse = error.norm().powi(2) / (n * dim);
    close("mse", &[mse], &expected["mse"].values, tolerance);
    let map = Map::Affine {
        forward: fitted,
        backward: None,
    };
    check(map, "new_means", "new_covs");

    let turned = orthogonal(&old, &new).unwrap();
    close(
        "Q",
        turned.weight.as_slice(),
        &expected["procrustes_Q"].values,
        tolerance,
    );
    close(
        "t",
        &turned.bias,
        &expected["procrustes_t"].values,
        tolerance,
    );
    check(
        Map::Orthogonal(turned),
        "procrustes_means",
        "procrustes_covs",
    );
}
