//! Studies as gray pictures, in integers: 1/16 of a pixel, four samples a pixel.

use super::dice::Dice;
use super::study::{Property, Study};
use crate::Result;
use crate::image::{Mode, Picture};

/// Pixels on a side.
pub const SIDE: usize = 64;
/// Units of a pixel.
const UNIT: i32 = 16;
/// The middle of the picture.
const MIDDLE: i32 = SIDE as i32 * UNIT / 2;
/// Whole turn of [`direction`].
const TURN: usize = 64;

/// A point, in units.
type Point = (i32, i32);

/// How a kind of picture shows things: gray levels, and what its noise is like.
struct Tones {
    ground: i32,
    inside: i32,
    outline: i32,
    mark: i32,
    line: i32,
    /// Most that noise adds or takes away.
    noise: i32,
    /// Pixels on a side of a grain.
    grain: usize,
}

/// By the value of [`Property::Kind`]: bright on dark, dark on bright, bright and grainy.
const TONES: [Tones; 3] = [
    Tones { ground: 25, inside: 70, outline: 140, mark: 215, line: 250, noise: 10, grain: 1 },
    Tones { ground: 225, inside: 165, outline: 110, mark: 45, line: 5, noise: 8, grain: 1 },
    Tones { ground: 5, inside: 95, outline: 150, mark: 205, line: 245, noise: 26, grain: 2 },
];

/// The picture of `study`; `look` decides all that has no name: places, sizes, noise.
///
/// # Errors
/// Never for this size of picture.
pub fn picture(study: &Study, look: u64) -> Result<Picture> {
    let mut dice = Dice::new(look, "look", 0);
    let tones = &TONES[study.get(Property::Kind)];
    let mut canvas = Canvas { gray: vec![tones.ground; SIDE * SIDE] };
    let centre = (MIDDLE + dice.between(-UNIT, UNIT), MIDDLE + dice.between(-UNIT, UNIT));
    body(&mut canvas, study, centre, tones);
    // Behind the marks: it may not hide one.
    if study.get(Property::Line) == 1 {
        line(&mut canvas, tones, &mut dice);
    }
    for place in places(study, centre, &mut dice) {
        mark(&mut canvas, study, place, tones, &mut dice);
    }
    if study.get(Property::Kind) == 2 {
        canvas.cut_fan();
    }
    canvas.add_noise(tones, &mut dice);
    let data = canvas.gray.iter().map(|&v| v.clamp(0, 255) as u8).collect();
    Picture::new(SIDE, SIDE, Mode::Gray, data)
}

/// Outline and inside.
fn body(canvas: &mut Canvas, study: &Study, (x, y): Point, tones: &Tones) {
    const RIM: i32 = 3 * UNIT / 2;
    let shapes: &[(Point, Point, bool)] = match study.get(Property::Outline) {
        0 => &[((0, 0), (30 * UNIT, 30 * UNIT), false)],
        1 => &[((0, 0), (29 * UNIT, 29 * UNIT), true)],
        _ => &[
            ((-15 * UNIT, 0), (14 * UNIT, 29 * UNIT), false),
            ((15 * UNIT, 0), (14 * UNIT, 29 * UNIT), false),
        ],
    };
    for &((dx, dy), (rx, ry), is_box) in shapes {
        let centre = (x + dx, y + dy);
        for (less, tone) in [(0, tones.outline), (RIM, tones.inside)] {
            let radii = (rx - less, ry - less);
            if is_box {
                canvas.fill(tone, centre, radii, |p| is_in_box(p, centre, radii));
            } else {
                canvas.fill(tone, centre, radii, |p| is_in_ellipse(p, centre, radii));
            }
        }
    }
}

/// Where the marks are: on the side and level of the study, in up to three cells that all outlines
/// hold and that do not touch the middle.
fn places(study: &Study, (x, y): Point, dice: &mut Dice) -> Vec<Point> {
    const NEAR: i32 = 8 * UNIT;
    const FAR: i32 = 20 * UNIT + UNIT / 2;
    let mut cells = [(NEAR, NEAR), (FAR, NEAR), (NEAR, FAR)];
    dice.shuffle(&mut cells);
    let sign = |property| 2 * study.get(property) as i32 - 1;
    let (across, down) = (sign(Property::Side), sign(Property::Level));
    let count = study.get(Property::Count) + 1;
    let mut jitter = || dice.between(-UNIT * 3 / 4, UNIT * 3 / 4);
    let cells = &cells[..count];
    cells.iter().map(|&(a, b)| (x + across * a + jitter(), y + down * b + jitter())).collect()
}

/// One mark: size, margin and texture of the study.
fn mark(canvas: &mut Canvas, study: &Study, place: Point, tones: &Tones, dice: &mut Dice) {
    let is_large = study.get(Property::Size) == 1;
    let (least, most) = if is_large { (80, 90) } else { (50, 58) };
    let radius = dice.between(least, most);
    let is_ragged = study.get(Property::Margin) == 1;
    // Per 64ths of the radius; about the same area as the smooth one.
    let (outer, inner) = if is_large { (80, 42) } else { (92, 36) };
    let corners: Vec<Point> = if is_ragged {
        let (spikes, turn) = (6 + dice.below(3), dice.below(TURN));
        let corner = |i: usize| {
            let part = if i.is_multiple_of(2) { outer } else { inner };
            let reach = radius * (part + dice.between(-5, 5)) / 64;
            along(place, turn + i * TURN / (2 * spikes), (reach, reach))
        };
        (0..2 * spikes).map(corner).collect()
    } else {
        let radii = (radius + dice.between(-5, 5), radius + dice.between(-5, 5));
        (0..TURN / 2).map(|i| along(place, 2 * i, radii)).collect()
    };
    // Spikes reach further than the radius.
    let reach = (2 * radius, 2 * radius);
    canvas.fill(tones.mark, place, reach, |p| is_in_polygon(p, &corners));
    match study.get(Property::Texture) {
        0 => (),
        1 => {
            // Inside the spikes' feet, or the ring would open.
            let hole = if is_ragged { radius * inner / 64 - 14 } else { radius - 30 }.max(18);
            canvas.fill(tones.inside, place, reach, |p| is_in_ellipse(p, place, (hole, hole)));
        }
        _ => {
            let faint = (tones.mark + 2 * tones.inside) / 3;
            let is_dot = |(x, y): Point| (x / UNIT + y / UNIT) % 2 == 0;
            canvas.fill(faint, place, reach, |p| is_dot(p) && is_in_polygon(p, &corners));
        }
    }
}

/// A thin bent line from the upper or lower edge to the middle.
fn line(canvas: &mut Canvas, tones: &Tones, dice: &mut Dice) {
    let from_above = dice.one_in(2);
    let edge = if from_above { 0 } else { 2 * MIDDLE };
    let mut near = |x: i32, y: i32, reach: i32| {
        (x + dice.between(-reach, reach) * UNIT, y + dice.between(-reach, reach) * UNIT)
    };
    let start = near(MIDDLE, edge, 12);
    let end = near(MIDDLE, MIDDLE, 4);
    let bend = near((start.0 + end.0) / 2, (start.1 + end.1) / 2, 4);
    for (a, b) in [((start.0, edge), bend), (bend, end)] {
        const WIDTH: i32 = 12;
        let middle = ((a.0 + b.0) / 2, (a.1 + b.1) / 2);
        let reach = ((a.0 - b.0).abs() / 2 + UNIT, (a.1 - b.1).abs() / 2 + UNIT);
        canvas.fill(tones.line, middle, reach, |p| is_near_segment(p, a, b, WIDTH));
    }
}

/// Gray levels, which may leave 0..=255 until the end.
struct Canvas {
    gray: Vec<i32>,
}

impl Canvas {
    /// Paints what `is_inside` says, which is no further from `centre` than `reach` in x and y;
    /// blended where a pixel is partly inside.
    fn fill(&mut self, tone: i32, centre: Point, reach: Point, is_inside: impl Fn(Point) -> bool) {
        let pixels = |middle: i32, reach: i32| {
            let pixel = |u: i32| (u.div_euclid(UNIT)).clamp(0, SIDE as i32 - 1) as usize;
            pixel(middle - reach)..=pixel(middle + reach)
        };
        for y in pixels(centre.1, reach.1) {
            for x in pixels(centre.0, reach.0) {
                let (left, top) = (x as i32 * UNIT, y as i32 * UNIT);
                let samples = [(4, 4), (12, 4), (4, 12), (12, 12)];
                let hits = samples.iter().filter(|(a, b)| is_inside((left + a, top + b))).count();
                let v = &mut self.gray[y * SIDE + x];
                *v += (tone - *v) * hits as i32 / 4;
            }
        }
    }

    /// Darkens all outside of a fan that opens downwards.
    fn cut_fan(&mut self) {
        for (i, v) in self.gray.iter_mut().enumerate() {
            let (x, y) = ((i % SIDE) as i32, (i / SIDE) as i32);
            if (2 * x - SIDE as i32 + 1).abs() > 28 + y + y / 4 {
                *v = 0;
            }
        }
    }

    fn add_noise(&mut self, tones: &Tones, dice: &mut Dice) {
        let across = SIDE.div_ceil(tones.grain);
        let grains: Vec<i32> =
            (0..across * across).map(|_| dice.between(-tones.noise, tones.noise)).collect();
        let (light, tilt) = (dice.between(-8, 8), dice.between(-12, 12));
        for (i, v) in self.gray.iter_mut().enumerate() {
            let (x, y) = (i % SIDE, i / SIDE);
            let grain = grains[y / tones.grain * across + x / tones.grain];
            // Grain is part of what shines, so black stays black.
            let grain = if tones.grain > 1 { grain * (*v).min(128) / 128 } else { grain };
            *v += grain + light + tilt * (y as i32 - SIDE as i32 / 2) / SIDE as i32;
        }
    }
}

/// (cos, sin) of `step` / 64 turns, times 1024, the same on every machine.
fn direction(step: usize) -> Point {
    const QUARTER: [i32; 17] =
        [1024, 1019, 1004, 980, 946, 903, 851, 792, 724, 650, 569, 483, 392, 297, 200, 100, 0];
    let (quarter, i) = (step / 16 % 4, step % 16);
    let (cos, sin) = (QUARTER[i], QUARTER[16 - i]);
    [(cos, sin), (-sin, cos), (-cos, -sin), (sin, -cos)][quarter]
}

fn along((x, y): Point, step: usize, (rx, ry): Point) -> Point {
    let (cos, sin) = direction(step);
    (x + rx * cos / 1024, y + ry * sin / 1024)
}

fn is_in_ellipse((px, py): Point, (x, y): Point, (rx, ry): Point) -> bool {
    let (dx, dy) = (i64::from(px - x), i64::from(py - y));
    let (rx, ry) = (i64::from(rx), i64::from(ry));
    (dx * ry).pow(2) + (dy * rx).pow(2) <= (rx * ry).pow(2)
}

/// A box with corners rounded by 8 pixels.
fn is_in_box((px, py): Point, (x, y): Point, (rx, ry): Point) -> bool {
    const ROUND: i32 = 8 * UNIT;
    let (dx, dy) = ((px - x).abs(), (py - y).abs());
    let (over_x, over_y) = ((dx - rx + ROUND).max(0), (dy - ry + ROUND).max(0));
    over_x * over_x + over_y * over_y <= ROUND * ROUND
}

/// By the number of edges to the right of the point.
fn is_in_polygon((px, py): Point, corners: &[Point]) -> bool {
    let mut is_inside = false;
    for (i, &(ax, ay)) in corners.iter().enumerate() {
        let (bx, by) = corners[(i + 1) % corners.len()];
        if (ay > py) == (by > py) {
            continue;
        }
        // x of the edge at py, compared without dividing.
        let (run, rise) = (i64::from(bx - ax) * i64::from(py - ay), i64::from(by - ay));
        let distance = i64::from(px - ax) * rise;
        is_inside ^= if rise > 0 { distance < run } else { distance > run };
    }
    is_inside
}

fn is_near_segment((px, py): Point, a: Point, b: Point, reach: i32) -> bool {
    let wide = |p: i32, q: i32| i64::from(p - q);
    let (dx, dy) = (wide(b.0, a.0), wide(b.1, a.1));
    let (ex, ey) = (wide(px, a.0), wide(py, a.1));
    let length = dx * dx + dy * dy;
    let along = (ex * dx + ey * dy).clamp(0, length);
    // The squared distance to a + along/length * (b - a), times length^2.
    let (fx, fy) = (ex * length - along * dx, ey * length - along * dy);
    let most = i64::from(reach).pow(2) * length;
    length > 0 && (fx / length).pow(2) + (fy / length).pow(2) <= most / length.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    /// Mean gray of the quadrant, less that of an empty picture: where the marks are.
    fn brightest_quadrant(gray: &[u8]) -> (usize, usize) {
        let mut sums = [[0i64; 2]; 2];
        for (i, &v) in gray.iter().enumerate() {
            let (x, y) = (i % SIDE, i / SIDE);
            sums[y * 2 / SIDE][x * 2 / SIDE] += i64::from(v);
        }
        let cell = |(i, _): (usize, &i64)| (i % 2, i / 2);
        sums.as_flattened().iter().enumerate().max_by_key(|(_, v)| **v).map(cell).unwrap()
    }

    #[test]
    fn marks_are_on_the_side_and_level_that_the_study_says() {
        let mut dice = Dice::new(5, "draw", 0);
        for look in 0..40 {
            let mut study = Study::draw_with(&mut dice, Property::Kind, 0);
            study.set(Property::Line, 0);
            study.set(Property::Size, 1);
            let picture = picture(&study, look).unwrap();
            let found = brightest_quadrant(&picture.data);
            assert_eq!(found, (study.get(Property::Side), study.get(Property::Level)));
        }
    }

    /// Every property changes pixels, and by more than noise does.
    #[test]
    fn every_property_shows() {
        for property in Property::ALL {
            for look in 0..4 {
                let mut dice = Dice::new(look, "shows", 0);
                let study = Study::draw(&mut dice);
                let mut other = study;
                other.set(property, (study.get(property) + 1) % property.values().len());
                let (a, b) = (picture(&study, look).unwrap(), picture(&other, look).unwrap());
                let differ = |(a, b): &(&u8, &u8)| a.abs_diff(**b) > 24;
                let count = a.data.iter().zip(&b.data).filter(differ).count();
                assert!(count >= 6, "{} changes {count} pixels", property.name());
            }
        }
    }

    /// The same bytes on every machine.
    #[test]
    fn pictures_are_the_same_everywhere() {
        let mut hash = Sha256::new();
        for index in 0..16 {
            let mut dice = Dice::new(index, "fixed", index);
            let study = Study::draw(&mut dice);
            hash.update(picture(&study, index).unwrap().data);
        }
        let hex: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "2f72efc62b281f2f4b8e55fdfe3373c174a4c360074045e4a591a3db2a353a7f");
    }
}
