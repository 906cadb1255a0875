//! Charts as inline SVG, by plotters.
//!
//! Knows points and axes; must not know what they mean. The colours are names: the page's style sheet says what
//! they look like, in the light and in the dark.

use std::ops::Range;

use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::prelude::*;

/// Small, so that letters can still be read on a phone, where a chart is as wide as the page.
const SIZE: (u32, u32) = (420, 250);
const LETTERS: u32 = 16;
/// What the style sheet says of them is in `page.css`.
pub const LINES: [RGBColor; 3] = [RGBColor(11, 107, 203), RGBColor(209, 73, 43), RGBColor(126, 132, 140)];
const INK: RGBColor = RGBColor(86, 93, 102);
const GRID: RGBColor = RGBColor(224, 227, 231);

/// One axis: its range, where its marks are, and what is written there.
pub struct Axis<'a> {
    pub from: f64,
    pub to: f64,
    pub marks: Vec<f64>,
    pub label: &'a dyn Fn(&f64) -> String,
}

/// A line, and whether it climbs in steps.
pub type Line = Vec<(f64, f64)>;

/// A range with marks where we want them.
struct Marked {
    range: Range<f64>,
    marks: Vec<f64>,
}

impl Marked {
    fn new(axis: &Axis<'_>) -> Marked {
        Marked { range: axis.from..axis.to, marks: axis.marks.clone() }
    }
}

impl Ranged for Marked {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (low, high): (i32, i32)) -> i32 {
        let share = (value - self.range.start) / (self.range.end - self.range.start);
        low + (share * f64::from(high - low)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        // Those between the marks have nothing to say.
        if hint.weight().allow_light_points() { vec![] } else { self.marks.clone() }
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

/// One chart with a few lines; `None` if there is nothing to show.
pub fn draw(x: &Axis<'_>, y: &Axis<'_>, lines: &[Line]) -> Option<String> {
    if lines.iter().all(|line| line.len() < 2) || x.from >= x.to || y.from >= y.to {
        return None;
    }
    let mut svg = String::new();
    let drawn = draw_on(&mut svg, x, y, lines);
    drawn.ok().map(|()| svg)
}

type Failed = DrawingAreaErrorKind<std::io::Error>;

fn draw_on(svg: &mut String, x: &Axis<'_>, y: &Axis<'_>, lines: &[Line]) -> Result<(), Failed> {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    let mut chart = ChartBuilder::on(&root)
        .margin(6)
        .margin_right(24)
        .x_label_area_size(30)
        .y_label_area_size(64)
        .build_cartesian_2d(Marked::new(x), Marked::new(y))?;
    let letters = || ("sans-serif", LETTERS).into_font().color(&INK);
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(GRID)
        .x_labels(20)
        .y_labels(20)
        .x_label_style(letters())
        .y_label_style(letters())
        .x_label_formatter(&|value| (x.label)(value))
        .y_label_formatter(&|value| (y.label)(value))
        .draw()?;
    // The first line is the one that matters: it is drawn over the others.
    for (line, colour) in lines.iter().zip(LINES).rev() {
        chart.draw_series(LineSeries::new(line.iter().copied(), colour.stroke_width(2)))?;
    }
    root.present()
}

/// Round numbers within a range, about as many as asked for.
pub fn marks(from: f64, to: f64, wanted: usize) -> Vec<f64> {
    let rough = (to - from) / wanted.max(1) as f64;
    if !rough.is_finite() || rough <= 0.0 {
        return vec![];
    }
    let power = 10f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].map(|n| n * power).into_iter().find(|step| *step >= rough).unwrap_or(rough);
    let first = (from / step).ceil();
    let marks = (0..=2 * wanted as u32).map(|n| (first + f64::from(n)) * step);
    marks.take_while(|mark| *mark <= to + step * 1e-9).collect()
}

/// The same on an axis of decimal logarithms.
pub fn log_marks(from: f64, to: f64, wanted: usize) -> Vec<f64> {
    let (low, high) = (10f64.powf(from), 10f64.powf(to));
    let decades = |digits: &[f64]| {
        let powers = (from.floor() as i32)..=(to.ceil() as i32);
        let marks = powers.flat_map(|power| digits.iter().map(move |digit| digit * 10f64.powi(power)));
        marks.filter(|mark| (low..=high).contains(mark)).map(f64::log10).collect::<Vec<_>>()
    };
    // A range of less than an octave or two is as good as linear.
    if to - from < 0.6 {
        return marks(low, high, wanted).into_iter().filter(|mark| *mark > 0.0).map(f64::log10).collect();
    }
    let (fine, middle) = (decades(&[1.0, 2.0, 5.0]), decades(&[1.0, 3.0]));
    [fine, middle, decades(&[1.0])]
        .into_iter()
        .find(|marks| marks.len() <= wanted + 2)
        .unwrap_or_else(|| marks(from, to, wanted).into_iter().filter(|mark| mark.fract() == 0.0).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn marks_are_round() {
        assert_eq!(marks(0.0, 10.0, 5), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(marks(1.0, 1.0, 5), [0.0; 0]);
        let shown: Vec<f64> =
            log_marks(2.0, 4.0, 6).into_iter().map(|mark| 10f64.powf(mark).round()).collect();
        assert_eq!(shown, [100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0]);
        let shown: Vec<f64> =
            log_marks(2.4, 2.5, 4).into_iter().map(|mark| 10f64.powf(mark).round()).collect();
        assert_eq!(shown, [260.0, 280.0, 300.0]);
    }

    #[test]
    fn nothing_is_not_drawn() {
        let axis = |to| Axis { from: 0.0, to, marks: vec![], label: &|_| String::new() };
        assert!(draw(&axis(1.0), &axis(1.0), &[]).is_none());
        assert!(draw(&axis(1.0), &axis(0.0), &[vec![(0.0, 0.0), (1.0, 1.0)]]).is_none());
        let svg = draw(&axis(1.0), &axis(1.0), &[vec![(0.0, 0.0), (1.0, 1.0)]]).unwrap();
        assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"), "{svg}");
        assert!(svg.contains("#0B6BCB"), "{svg}");
    }

    proptest! {
        #[test]
        fn marks_are_few_and_within(from in -1e6f64..1e6, len in 1e-3f64..1e6, wanted in 3usize..10) {
            let marks = marks(from, from + len, wanted);
            prop_assert!(!marks.is_empty() && marks.len() <= 2 * wanted + 1, "{:?}", marks);
            prop_assert!(marks.iter().all(|mark| *mark >= from - len * 1e-6 && *mark <= from + len * 1.000_001));
        }
    }
}
