//! What has to come out, computed from the pages alone.

use std::collections::BTreeMap;

use crate::Outcome;

/// What `result.csv` has to be for these pages.
pub(crate) fn result<'a>(pages: impl IntoIterator<Item = &'a str>) -> Outcome<String> {
    let mut stations = BTreeMap::<&str, Vec<i64>>::new();
    for page in pages {
        for line in page.lines().skip(1) {
            let (station, millidegrees) = line.split_once(',').ok_or("no comma")?;
            stations.entry(station).or_default().push(millidegrees.parse()?);
        }
    }
    let mut result = "station,records,sum,min,max\n".to_owned();
    for (station, values) in stations {
        let (min, max) = (values.iter().min().ok_or("none")?, values.iter().max().ok_or("none")?);
        result += &format!("{station},{},{},{min},{max}\n", values.len(), values.iter().sum::<i64>());
    }
    Ok(result)
}

/// All pages of a server.
pub(crate) async fn fetched(at: &str) -> Outcome<Vec<String>> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    let index = client.get(at).send().await?.error_for_status()?.text().await?;
    let mut pages = Vec::new();
    for path in index.lines() {
        pages.push(client.get(format!("{at}{path}")).send().await?.error_for_status()?.text().await?);
    }
    Ok(pages)
}

/// Whether a text is an SVG whose elements all end, and the number of points of its line.
pub(crate) fn points(svg: &str) -> Outcome<usize> {
    let mut open = Vec::new();
    let mut lines = Vec::new();
    for tag in svg.split('<').skip(1) {
        let (tag, _) = tag.split_once('>').ok_or("a tag without end")?;
        match (tag.strip_prefix('/'), tag.strip_suffix('/')) {
            (Some(name), _) => assert_eq!(open.pop(), Some(name)),
            (None, None) if !tag.starts_with(['?', '!']) => {
                open.push(tag.split_whitespace().next().ok_or("a tag without name")?);
            }
            (None, _) => {}
        }
        // The mesh has lines of two points.
        if tag.starts_with("polyline") && tag.contains("stroke=\"#0000FF\"") {
            let (_, points) = tag.split_once("points=\"").ok_or("no points")?;
            lines.push(points.split('"').next().unwrap_or_default().split_whitespace().count());
        }
    }
    assert!(svg.starts_with("<svg") && open.is_empty(), "{open:?}");
    assert_eq!(lines.len(), 1, "{svg}");
    Ok(lines[0])
}
